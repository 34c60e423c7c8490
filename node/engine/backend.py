"""The one table that says which backend computes: (name, device, interpreter). The worker's loop knows these protocols
and no tensor library.

A backend is plain and synchronous: it is called from the worker's main thread alone, one call at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

from node.engine.base import BackendInfo, Batch, BatchResult, StageInfo, StageSpec
from node.errors import EngineError
from node.wire.frames import Sampling
from node.wire.records import Hardware

BackendName = Literal["torch"]
DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]


class BackendLost(Exception):
    """Nothing can be computed any more, whatever it is: the worker must end, and another one begin."""


class LoadedStage(Protocol):
    """A loaded range, inside the worker. Methods and errors as in `base.Stage`; `run` may raise `BackendLost` too."""

    info: StageInfo

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None: ...

    def run(self, batch: Batch) -> BatchResult: ...

    def rewind(self, sequence: str, position: int) -> None: ...

    def close(self, sequence: str) -> None: ...

    def drop(self) -> None: ...


class Backend(Protocol):
    """A tensor library on one device."""

    info: BackendInfo

    def measure(self) -> Hardware:
        """Measure the device; takes well under 2 s."""

    def load(self, spec: StageSpec) -> Generator[None, None, LoadedStage]:
        """Load a range bit by bit: yields after each piece of some tens of milliseconds, so that the worker can serve
        other stages in between.

        Raises:
            LoadFailed: files missing or damaged, or too little memory.
        """

    def set_threads(self, threads: int) -> None:
        """Use that many processor threads from now on."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """One row of the table."""

    name: BackendName
    devices: tuple[DeviceChoice, ...]
    """That it can be asked for."""
    python: str
    """The interpreter that its worker runs under. Needs msgspec, numpy, psutil and what the backend computes with."""
    prepare: Callable[[], None]
    """Import what takes long to import, and nothing else: no threads, no device."""
    open: Callable[[DeviceChoice], Backend]
    """Raises EngineError where the device is not there."""


def _prepare_torch() -> None:
    # the library's own imports take seconds, and the smallest family's pull in nearly all that any family needs
    import_module("node.engine.torch_backend")
    library = import_module("transformers")
    for name in ("AutoConfig", "AutoModelForCausalLM", "DynamicCache"):  # imported where they are asked for
        getattr(library, name)
    import_module("transformers.models.llama.modeling_llama")


def _open_torch(device: DeviceChoice) -> Backend:
    from node.engine.torch_backend import TorchBackend  # torch takes seconds to import

    return TorchBackend(device)


BACKENDS: dict[BackendName, BackendChoice] = {
    "torch": BackendChoice("torch", ("auto", "cpu", "cuda", "mps"), sys.executable, _prepare_torch, _open_torch),
}
"""`auto` takes cuda, then mps, then cpu."""


def open_backend(name: BackendName, device: DeviceChoice) -> Backend:
    """The backend of this name on a device.

    Raises:
        EngineError: it does not know that device, or the device is not there.
    """
    choice = BACKENDS[name]
    if device not in choice.devices:
        raise EngineError(f"the backend {name} knows no device {device}; it knows {', '.join(choice.devices)}")
    return choice.open(device)
