"""The one place where a backend is chosen. The worker's loop knows these protocols and no tensor library.

A backend is plain and synchronous: it is called from the worker's main thread alone, one call at a time.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from node.engine.base import StageInfo, StageSpec, Step, StepResult
from node.engine.messages import DeviceChoice
from node.wire.records import Hardware


class LoadedStage(Protocol):
    """A loaded range, inside the worker. Methods and errors as in `base.Stage`."""

    info: StageInfo

    def reserve(self, session: str, tokens: int) -> None: ...

    def run(self, step: Step) -> StepResult: ...

    def free(self, session: str) -> None: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """A tensor library on one device."""

    def measure(self) -> Hardware:
        """Measure the device; takes well under 2 s."""

    def load(self, spec: StageSpec) -> Generator[None, None, LoadedStage]:
        """Load a range bit by bit: yields after each tensor, so that the worker can serve other stages in between.

        Raises:
            LoadFailed: files missing or damaged, or too little memory.
        """

    def set_threads(self, threads: int) -> None:
        """Use that many processor threads from now on."""


def open_backend(device: DeviceChoice) -> Backend:
    """The backend for a device; `auto` takes cuda, then mps, then cpu.

    Raises:
        EngineError: that device is not there.
    """
    from node.engine.torch_backend import TorchBackend  # torch takes seconds to import

    return TorchBackend(device)
