"""Model files, facts and the tokenizer, fetched in a child process so that the event loop never waits for a disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import trio

from node.errors import ParallaxError
from node.models import (
    ChatModel,
    Phase,
    fit_for_chat,
    held_bits,
    identify_in_child,
    prepare_in_child,
    read_facts,
)
from node.wire.events import Event, ModelProgress, Notice
from node.wire.models import Dtype, ModelFacts, ModelRef, Quantise

log = logging.getLogger(__name__)

CHECKED_FOR_S = 600.0
"""For so long weights that were found whole are not read again before they are loaded once more."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a head and a planner need of a model: everything but its weights."""

    folder: Path
    chat: ChatModel
    quantise: Quantise = "auto"
    backends: tuple[str, ...] = ()
    """That are installed here, of which one is chosen when layers are loaded."""

    def facts(self, dtype: Dtype) -> ModelFacts:
        """Sizes for weights of `dtype`, and what a weight takes in memory here."""
        return read_facts(self.folder, dtype, held_bits(self.folder, dtype, self.quantise, self.backends))


class ModelStore:
    """One node's access to model files. Progress becomes events."""

    def __init__(
        self,
        models: Path,
        emit: Callable[[Event], object],
        *,
        quantise: Quantise = "auto",
        backends: Collection[str] = (),
    ) -> None:
        self._models, self._emit = models, emit
        self._quantise: Quantise = quantise
        self._backends = tuple(backends)
        self._metadata: dict[ModelRef, Metadata] = {}
        self._lock = trio.Lock()
        self._reading = trio.CapacityLimiter(1)
        self._checked_at_s: dict[tuple[ModelRef, int, int], float] = {}
        """When the weights of a range were last read and found whole."""

    async def identify(self, choice: str) -> ModelRef:
        """What `--model` means here.

        Raises:
            ModelError: it names nothing that can be had.
        """
        name = choice or "the default model"
        return await identify_in_child(choice or None, self._models, self._reporter(name))

    async def metadata(self, ref: ModelRef) -> Metadata:
        """Config and tokenizer, fetched once.

        Raises:
            ModelError: they cannot be had.
        """
        async with self._lock:
            if ref not in self._metadata:
                folder = await self._prepare(ref, None)
                chat = await trio.to_thread.run_sync(ChatModel.load, folder, limiter=self._reading)
                self._metadata[ref] = Metadata(folder, fit_for_chat(ref, chat), self._quantise, self._backends)
        return self._metadata[ref]

    def known(self, ref: ModelRef) -> Metadata | None:
        """The metadata, if it has been fetched."""
        return self._metadata.get(ref)

    async def weights(self, ref: ModelRef, start: int, end: int) -> Path:
        """A folder that holds at least the weights of layers [start, end) and the ends that go with them.

        Their bytes are read and held against the hashes that they came with, unless that has just been done: an engine
        worker that died is not kept from its layers by it.

        Raises:
            ModelError: they cannot be had.
        """
        checked_at_s = self._checked_at_s.get((ref, start, end), float("-inf"))
        check = trio.current_time() >= checked_at_s + CHECKED_FOR_S
        folder = await self._prepare(ref, (start, end), check=check)
        if check:
            self._checked_at_s[ref, start, end] = trio.current_time()
        return folder

    def _reporter(self, name: str) -> Callable[[Phase, int, int, str], None]:
        def report(phase: Phase, done: int, total: int, text: str) -> None:
            if phase == "repair":
                log.warning("model %s: %s", name, text)
                self._emit(Notice.of("warning", f"model {name}: {text}"))
            else:
                self._emit(ModelProgress(name, phase, done, total, text))

        return report

    async def _prepare(self, ref: ModelRef, layers: tuple[int, int] | None, *, check: bool = True) -> Path:
        try:
            return await prepare_in_child(ref, self._models, layers, self._reporter(ref.name), check=check)
        except ParallaxError as error:
            self._emit(ModelProgress(ref.name, "failed", text=str(error)))
            raise
