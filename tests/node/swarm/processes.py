"""Starts and watches `swarm_process.py`: what a test says to a node and what the node has said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("swarm_process.py")
PATIENCE_S = 20.0
"""For what must happen, on a busy machine; the limits that are tested are measured by the node's own stamps."""


class NodeProcess:
    """One node in a process. What it says is kept in order, with its time."""

    def __init__(self, home: Path, name: str, *arguments: str) -> None:
        self.home, self.name = home, name
        home.mkdir(parents=True, exist_ok=True)
        self.log = (home / "stderr.log").open("ab")
        self.said: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(home), name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.said.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self.said.append({"ended": True, "at": time.time()})
            self._changed.notify_all()

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], *, since: int = 0, patience_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """The first thing said, from number `since` on, that is wanted."""
        deadline = time.monotonic() + patience_s
        with self._changed:
            while True:
                for entry in self.said[since:]:
                    if wanted(entry):
                        return entry
                if any("ended" in entry for entry in self.said[since:]):
                    raise AssertionError(f"{self.name} ended: {self.errors()[-2000:]}")
                if not self._changed.wait(timeout=max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"{self.name} did not say it; last: {self.said[-5:]} {self.errors()[-2000:]}")

    def ready(self) -> NodeProcess:
        greeting = self.wait_for(lambda entry: "ready" in entry)
        self.id, self.token = greeting["ready"], greeting["token"]
        self.port = int(greeting["addresses"][0].split("/tcp/")[1])
        return self

    def do(self, command: str, answer: str, **fields: object) -> Any:
        """Give a command and wait for what it answers under `answer`."""
        mark = len(self.said)
        self.tell(command, **fields)
        return self.wait_for(lambda entry: answer in entry, since=mark)[answer]

    def tell(self, command: str, **fields: object) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command} | fields).encode() + b"\n")
        self.process.stdin.flush()

    def sees(self, *others: NodeProcess, since: int = 0) -> None:
        for other in others:
            self._wait_for_news("seen", other, since)

    def gone(self, other: NodeProcess, *, since: int = 0) -> dict[str, Any]:
        return self._wait_for_news("gone", other, since)

    def _wait_for_news(self, kind: str, other: NodeProcess, since: int) -> dict[str, Any]:
        return self.wait_for(lambda entry: entry.get("news") == kind and entry["id"] == other.id, since=since)

    def members(self) -> set[str]:
        return set(self.do("members", "members"))

    def statistics(self) -> dict[str, Any]:
        return dict(self.do("statistics", "statistics"))

    def errors(self) -> str:
        return (self.home / "stderr.log").read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, which: signal.Signals) -> float:
        """Send it, and the time when it was sent."""
        at = time.time()
        self.process.send_signal(which)
        return at

    def leave(self) -> float:
        """Ask for a graceful end; the time of asking."""
        at = time.time()
        self.tell("stop")
        return at

    def close(self) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for file in (self.process.stdin, self.process.stdout, self.log):
            if file is not None:
                try:
                    file.close()
                except BrokenPipeError:
                    continue


class Nursery:
    """Every process that a test starts, so that none outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[NodeProcess] = []

    def start(self, name: str, *arguments: str) -> NodeProcess:
        node = NodeProcess(self.folder / name, name, *arguments)
        self.nodes.append(node)
        return node


@contextmanager
def node_processes(folder: Path) -> Iterator[Nursery]:
    """Start nodes in it; leaving it kills what is left of them."""
    nursery = Nursery(folder)
    try:
        yield nursery
    finally:
        for node in nursery.nodes:
            node.close()
