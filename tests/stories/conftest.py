"""Real node processes with real models, driven from outside as a person or a program would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

ROOT = Path(__file__).parents[2]
START_S = 120.0
"""Three nodes that import, measure and load on two busy cores."""

T = TypeVar("T")


def until(what: str, ask: Callable[[], T], within_s: float, every_s: float = 0.1) -> T:
    """The first true answer to `ask`; an `AssertionError` that says what was waited for otherwise."""
    deadline = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = ask()
            if answer:
                return answer
            last = answer
        except (httpx.HTTPError, AssertionError, OSError, ValueError) as error:
            last = error
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {within_s} s; last: {last!r}")


@dataclass
class RealNode:
    """One `parallax node` process with a home of its own."""

    name: str
    home: Path
    models: Path
    process: subprocess.Popen[bytes] | None = None
    options: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PARALLAX_HOME": str(self.home),
            "PARALLAX_MODELS": str(self.models),
            "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *options: str, invitation: str = "") -> None:
        """An invitation goes where no list of processes shows it."""
        self.options = list(options)
        given = {"PARALLAX_JOIN": invitation} if invitation else {}
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.home / "log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node", "--name", self.name, "--api", "127.0.0.1:0", *options],
                env={**self.environment, **given},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = 15.0) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def command(self, *arguments: str, stdin: str = "", timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `parallax …` in this node's home."""
        return run_parallax(*arguments, environment=self.environment, stdin=stdin, timeout_s=timeout_s)

    def client(self, timeout_s: float = 60.0) -> httpx.Client:
        """A client on the control socket, or on the control port with its token."""
        fields = json.loads((self.home / "run" / "control.json").read_text())
        if fields["socket_path"]:
            transport = httpx.HTTPTransport(uds=fields["socket_path"])
            return httpx.Client(transport=transport, base_url="http://node", timeout=timeout_s)
        headers = {"Authorization": f"Bearer {fields['token']}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{fields['port']}", headers=headers, timeout=timeout_s)

    def state(self) -> dict[str, Any]:
        with self.client(5.0) as client:
            return dict(client.get("/v1/state").raise_for_status().json())

    def names(self) -> set[str]:
        return {view["record"]["name"] for view in self.state()["nodes"].values()}

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Name to ready range, as this node sees it."""
        return {
            view["record"]["name"]: (held["start"], held["end"])
            for view in self.state()["nodes"].values()
            for held in view["record"]["held"]
            if held["state"] == "ready"
        }

    def healthy(self) -> bool:
        with self.client(5.0) as client:
            return bool(client.get("/health").json()["status"] == "ok")

    def wait_until_healthy(self, within_s: float = START_S) -> None:
        until(f"{self.name} is healthy", self.healthy, within_s)

    @property
    def api(self) -> str:
        """`http://127.0.0.1:PORT/v1`, out of the log."""
        for line in reversed(self.log().splitlines()):
            if "API at " in line:
                return line.split("API at ")[1].strip()
        raise AssertionError(f"{self.name} has told no API address")

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def chat(self, prompt: str, *, timeout_s: float = 60.0, **fields: Any) -> str:
        body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 24, **fields}
        with self.client(timeout_s) as client:
            response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])


def run_parallax(
    *arguments: str, environment: dict[str, str], stdin: str = "", timeout_s: float = 180.0
) -> subprocess.CompletedProcess[str]:
    """`parallax …` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "parallax_tui.cli", *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def said_beside_waiting(stderr: str | bytes) -> str:
    """What a command has told, but for what it waits for, which it says where that takes a while."""
    text = stderr.decode() if isinstance(stderr, bytes) else stderr
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("parallax: waiting: "))


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes whose home lies below `folder` (Linux only)."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PARALLAX_HOME={folder}".encode() in entry.read_bytes():
                found.append((entry.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@dataclass
class Machine:
    """Makes nodes whose homes lie below one folder, and ends them."""

    folder: Path
    models: Path
    nodes: list[RealNode] = field(default_factory=list)

    def node(self, name: str) -> RealNode:
        made = RealNode(name, self.folder / name, self.models)
        self.nodes.append(made)
        return made

    def end(self) -> None:
        for made in self.nodes:
            if made.process is not None and made.process.poll() is None:
                made.process.kill()
                made.process.wait()


@pytest.fixture
def machine(tmp_path: Path, models_folder: Path, default_model_folder: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, models_folder)
    yield made
    made.end()


@pytest.fixture(scope="module")
def shared_machine(
    tmp_path_factory: pytest.TempPathFactory, models_folder: Path, default_model_folder: Path
) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine"), models_folder)
    yield made
    made.end()


def start_swarm(machine: Machine, *names: str) -> list[RealNode]:
    """Nodes joined by the first one's invitation, whole and healthy."""
    first, *others = [machine.node(name) for name in names]
    first.start("--min-nodes", str(len(names)), "--no-discover")
    until("the first node answers", first.names, START_S)
    token = first.command("invite").stdout.strip()
    for other in others:
        other.start("--no-discover", invitation=token)
    for each in [first, *others]:
        each.wait_until_healthy()
    return [first, *others]
