"""Model files, facts and the tokenizer, fetched in a child process so that the event loop never waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from node.errors import ParallaxError
from node.models import ChatModel, Phase, identify_in_child, prepare_in_child, read_facts
from node.wire.events import Event, ModelProgress
from node.wire.models import Dtype, ModelFacts, ModelRef


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a head and a planner need of a model: everything but its weights."""

    folder: Path
    chat: ChatModel

    def facts(self, dtype: Dtype) -> ModelFacts:
        """Sizes for weights of `dtype`."""
        return read_facts(self.folder, dtype)


class ModelStore:
    """One node's access to model files. Progress becomes events."""

    def __init__(self, models: Path, emit: Callable[[Event], object]) -> None:
        self._models, self._emit = models, emit
        self._metadata: dict[ModelRef, Metadata] = {}
        self._lock = trio.Lock()

    async def identify(self, choice: str) -> ModelRef:
        """What `--model` means here.

        Raises:
            ModelError: it names nothing that can be had.
        """
        return await identify_in_child(choice or None, self._models)

    async def metadata(self, ref: ModelRef) -> Metadata:
        """Config and tokenizer, fetched once.

        Raises:
            ModelError: they cannot be had.
        """
        async with self._lock:
            if ref not in self._metadata:
                folder = await self._prepare(ref, None)
                chat = await trio.to_thread.run_sync(ChatModel.load, folder)
                self._metadata[ref] = Metadata(folder, chat)
        return self._metadata[ref]

    def known(self, ref: ModelRef) -> Metadata | None:
        """The metadata, if it has been fetched."""
        return self._metadata.get(ref)

    async def weights(self, ref: ModelRef, start: int, end: int) -> Path:
        """A folder that holds at least the weights of layers [start, end) and the ends that go with them.

        Raises:
            ModelError: they cannot be had.
        """
        return await self._prepare(ref, (start, end))

    async def _prepare(self, ref: ModelRef, layers: tuple[int, int] | None) -> Path:
        def report(phase: Phase, done: int, total: int, text: str) -> None:
            self._emit(ModelProgress(ref.name, phase, done, total, text))

        try:
            return await prepare_in_child(ref, self._models, layers, report)
        except ParallaxError as error:
            self._emit(ModelProgress(ref.name, "failed", text=str(error)))
            raise
