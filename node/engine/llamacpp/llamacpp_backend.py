"""llama.cpp on one device: the processor, or a graphics card by Metal or Vulkan."""

from __future__ import annotations

from collections.abc import Generator
from weakref import WeakSet

from node.engine.backend import Device
from node.engine.base import StageSpec
from node.engine.llamacpp.library import open_library
from node.engine.llamacpp.loading import load_stage
from node.engine.llamacpp.model import Placement
from node.engine.llamacpp.stage import LlamaStage
from node.engine.memory import WorkerMemory
from node.errors import EngineError


class LlamaBackend:
    """A `backend.Backend`."""

    def __init__(self, device: Device) -> None:
        """Raises EngineError: the library is not there or another one, or there is no such device for it."""
        self._library = open_library()
        self._threads = 1
        self._stages: WeakSet[LlamaStage] = WeakSet()
        self._memory = WorkerMemory(lambda: sum(stage.info.weight_bytes for stage in self._stages if stage.is_held))
        if device == "cpu":
            self._library.load_processor()
            self._placement = Placement()
            return
        self._library.load_cards()
        if not (cards := self._library.cards()):
            kind = "Metal" if device == "mps" else "Vulkan, whose loader and driver must be installed"
            raise EngineError(f"llama.cpp finds no graphics card here; it computes on them by {kind}")
        self._placement = Placement(tuple(cards[:1]))

    def load(self, spec: StageSpec) -> Generator[None, None, LlamaStage]:
        """See `backend.Backend.load`."""
        stage = yield from load_stage(spec, self._library, self._placement, self._memory, lambda: self._threads)
        self._stages.add(stage)
        return stage

    def set_threads(self, threads: int) -> None:
        """See `backend.Backend.set_threads`."""
        self._threads = threads
        for stage in self._stages:
            stage.set_threads(threads)
