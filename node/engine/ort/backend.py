"""onnxruntime on the processor."""

from __future__ import annotations

from collections.abc import Generator

from node.engine.base import StageSpec
from node.engine.ort.loading import load_stage
from node.engine.ort.part_store import PartStore
from node.engine.ort.stage import OrtStage


class OrtBackend:
    """A `backend.Backend`."""

    def __init__(self) -> None:
        self.store = PartStore()

    def load(self, spec: StageSpec) -> Generator[float | None, None, OrtStage]:
        """See `backend.Backend.load`."""
        return load_stage(spec, self.store)

    def set_threads(self, threads: int) -> None:
        """See `backend.Backend.set_threads`. Parts that are loaded take it over one after another."""
        self.store.threads = threads
