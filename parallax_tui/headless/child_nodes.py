"""Node processes that we start and that end with us, however we end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from node.errors import ParallaxError, how_ended
from node.home import Home, write_private
from node.python_child import module_command, module_environment
from parallax_tui.headless.node_connection import answers, read_invitation

STOP_S = 10.0
"""A node says goodbye within two seconds; a busy machine gets more."""

START_S = 60.0
LOG_TAIL_LINES = 15
LEAST_FREE_BYTES = 64 * 1024
FAULT = re.compile(r"[A-Za-z_.]*(Error|Exception|Exit|Interrupt)\b(?!.*sub-exception)")
ERROR_MARK = "parallax: "
"""Starts the sentence with which a node ends on an error."""


class NodeEnded(ParallaxError):
    """A node that we started has ended."""


@dataclass(frozen=True, slots=True)
class ChildNode:
    """A node process of ours."""

    home: Home
    process: subprocess.Popen[bytes]
    log: Path

    def problem(self) -> str | None:
        """Its last words, once it has ended; None while it runs."""
        if self.process.poll() is None:
            return None
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        if not lines and shutil.disk_usage(self.log.parent).free < LEAST_FREE_BYTES:  # there was no room for its words
            return f"{self.home.data}: the disk is full; make room, or set PARALLAX_HOME to another one"
        return last_words(self.process.returncode, lines, self.log)

    def wait_until_it_answers(self) -> None:
        """Block until the control endpoint answers.

        Raises:
            NodeEnded: it ended, or did not answer within `START_S`; with its last words.
        """
        deadline = time.monotonic() + START_S
        while not answers(self.home):
            problem = self.problem()
            if problem is not None:
                raise NodeEnded(problem)
            if time.monotonic() > deadline:
                raise NodeEnded(f"the node did not answer within {START_S:.0f} s; its log is {self.log}")
            time.sleep(0.05)


def last_words(code: int, lines: Sequence[str], log: Path) -> str:
    """Why a node has ended, in a sentence: its own where it said one, else what its system did to it.

    Args:
        code: of its process, below zero for a signal.
        lines: the end of its log.
        log: where all of it is.
    """
    said = [line.removeprefix(ERROR_MARK) for line in lines if line.startswith(ERROR_MARK)]
    if said:
        return "\n".join(said)
    # a fault of ours ends in a traceback, whose last line names it
    names = [line.strip(" |+-") for line in lines if FAULT.match(line.strip(" |+-"))]
    fault = f" ({names[-1]})" if names and code > 0 else ""
    return f"the node {how_ended(code)}{fault}; its log is {log}"


@contextmanager
def child_node(home: Home, options: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[ChildNode]:
    """Start a node for `home`; leaving the block stops it."""
    home.make_folders()
    log = home.data / "node.log"
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log_file:
        process = subprocess.Popen(
            module_command("node", *options),
            stdin=subprocess.PIPE,  # closes when we end, in whatever way; the node watches it
            stdout=log_file,
            stderr=log_file,
            env=module_environment(**(environment or {}), PARALLAX_STOP_WITH_PARENT="1"),
            start_new_session=True,  # ctrl-c is ours to handle: we stop the node in order
        )
    child = ChildNode(home, process, log)
    try:
        yield child
    except ParallaxError as error:
        if process.poll():  # its own reason for ending is ours
            error.exit_code = max(1, process.returncode)
        raise
    finally:
        _stop(process)


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    _ask_to_stop(process)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pass  # it is killed below
    finally:  # also when ctrl-c or a signal cuts the wait short: the folder that it uses may be removed next
        if process.poll() is None:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class LocalNodes:
    """Nodes on this machine that form a swarm of their own."""

    nodes: tuple[ChildNode, ...]

    @property
    def home(self) -> Home:
        """Of the first one, which is asked."""
        return self.nodes[0].home

    def problem(self) -> str | None:
        """Name and last words of the first one that has ended; None while all run."""
        for node in self.nodes:
            if (words := node.problem()) is not None:
                return f"{node.home.data.name} ended: {words}"
        return None


@contextmanager
def local_nodes(count: int, models: Path, options: Sequence[str]) -> Iterator[LocalNodes]:
    """`count` nodes on this machine in a swarm of their own, which leaves nothing behind.

    They share the weights in `models`, and each holds its share of the layers.
    """
    root = Path(tempfile.mkdtemp(prefix="parallax-local-"))
    try:
        with ExitStack() as stack:
            shared = ["--api", "off", "--no-discover", "--listen", "127.0.0.1:0", *options]
            first = stack.enter_context(_local_node(root, 1, models, [*shared, "--min-nodes", str(count)]))
            first.wait_until_it_answers()
            token = read_invitation(first.home) if count > 1 else ""
            others = [
                stack.enter_context(_local_node(root, number, models, shared, token)) for number in range(2, count + 1)
            ]
            for node in (first, *others):
                stack.callback(_ask_to_stop, node.process)  # all at once, before each is waited for
            yield LocalNodes((first, *others))
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _local_node(root: Path, number: int, models: Path, options: Sequence[str], token: str = "") -> Iterator[ChildNode]:
    folder = root / f"local-{number}"
    environment = {"PARALLAX_HOME": str(folder), "PARALLAX_MODELS": str(models)}
    home = Home(folder, folder / "run", models)
    if token:
        # not on its command line, which every user of this machine can read
        write_private(home.config, tomli_w.dumps({"join": [token]}).encode())
    with child_node(home, ["--name", f"local-{number}", *options], environment) as child:
        yield child
