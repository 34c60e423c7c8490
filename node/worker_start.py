"""Starts what workers come from, before anything else of the node is there: its imports take as long as the node's own.

Light to import: Python's own library alone. `node.engine.forking` takes the process over, or starts another one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.python_child import own_session

BOOTSTRAP = Path(__file__).resolve().with_name("engine") / "bootstrap.py"

CAN_FORK = sys.platform == "linux" and hasattr(os, "pidfd_open")
"""Elsewhere a process that has loaded the system's own libraries for computing cannot be forked."""

USUAL_BACKENDS = ("ort",)
"""What a home imports at once that has computed with nothing yet."""

SPIN = {
    # How long idle GNU OpenMP threads spin before they sleep. Decode of a 135 M model on 2 cores, ms per token:
    # the default: 32 in bf16 alone, 220 in fp32 with two workers of 2 threads each; never spinning
    # (OMP_WAIT_POLICY=PASSIVE): 54 and 83; this: 33 and 73. A value from outside wins.
    "GOMP_SPINCOUNT": "10000",
}

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # the models room fetches; a worker only reads files
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime would send what is run to its makers
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's, which would start them at its import; the worker multiplies with torch
}


def command(python: str, *arguments: str) -> list[str]:
    """What starts a worker, or with arguments what `engine.bootstrap` knows besides."""
    return [python, "-P", str(BOOTSTRAP), *arguments]


def environment() -> dict[str, str]:
    """Of a worker."""
    return {**SPIN, **os.environ, **ENVIRONMENT}


@dataclass(frozen=True, slots=True)
class StartedForkServer:
    """A fork server that has just been started. It ends with the other end of its socket, so with us at the latest."""

    process: subprocess.Popen[bytes]
    """What it writes for people is on `stdout`."""
    control: socket.socket
    """Our end."""
    backends: tuple[str, ...]
    """That it imports."""

    def end(self) -> None:
        """Nobody has taken it over."""
        self.control.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def start_fork_server(python: str, backends: Sequence[str]) -> StartedForkServer:
    """Start one under the interpreter `python`; it imports what these backends need. Takes some milliseconds.

    Raises:
        OSError: there is no such interpreter.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            process = subprocess.Popen(
                command(python, "fork-server", str(theirs.fileno()), ",".join(backends)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment(),
                pass_fds=(theirs.fileno(),),
                **own_session(),
            )
    except BaseException:
        ours.close()
        raise
    return StartedForkServer(process, ours, tuple(backends))
