"""The parts that live stages of one worker hold: each is made once, whoever needs it, for the threads of the moment."""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from weakref import WeakValueDictionary

from node.engine.memory import WorkerMemory
from node.engine.ort.parts import Part, Source, head_part, layers_part

POLL_S = 0.02
"""A load gives the worker back for a moment so often, so that a stage in service need not wait for a large part."""
HEAD = (0, 0)
"""The head's place among layers."""


class PartStore:
    """Holds no part alive itself."""

    def __init__(self) -> None:
        self._parts: WeakValueDictionary[tuple[object, ...], Part] = WeakValueDictionary()
        self.memory = WorkerMemory(lambda: sum(part.weight_bytes for part in self._parts.values()))
        """For them and the caches of those stages."""
        self.threads = 1
        self.made_count = 0
        """Parts made so far."""
        self._renewing: tuple[Part, Future[Part]] | None = None
        self._rest_until_s = 0.0
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="parts")

    def __len__(self) -> int:
        """Parts that a live stage holds."""
        return len(self._parts)

    def part(self, source: Source, start: int, end: int) -> Part:
        """A part, made on the spot where nobody has it."""
        key = (source.key, start, end)
        if (found := self._parts.get(key)) is None:
            found = self._parts[key] = self._make(source, start, end)
        return found

    def load(self, source: Source, spans: list[tuple[int, int]]) -> Generator[float | None, None, list[Part]]:
        """These parts, `HEAD` among them; yields while one is made, and after each one the share that is there."""
        coming = {span: _stored_bytes(source, span) for span in spans if (source.key, *span) not in self._parts}
        self.memory.coming_bytes += sum(coming.values())
        parts: list[Part] = []
        all_bytes = sum(_stored_bytes(source, span) for span in spans)
        there_bytes = 0
        try:
            for span in spans:
                if (found := self._parts.get((source.key, *span))) is None:
                    found = yield from _patiently(self._maker.submit(self._make, source, *span))
                    self._parts[source.key, *span] = found
                self.memory.coming_bytes -= coming.pop(span, 0)
                parts.append(found)
                there_bytes += _stored_bytes(source, span)
                yield there_bytes / max(1, all_bytes)
        finally:
            self.memory.coming_bytes -= sum(coming.values())
        return parts

    def renew_some(self, parts: list[Part], source: Source) -> None:
        """Have a part that was made for another number of threads made anew beside, one at a time, and take it over
        when it is ready. Results do not depend on the number, so it may differ from part to part meanwhile."""
        if self._renewing is not None:
            part, future = self._renewing
            if not future.done():
                return
            self._renewing = None
            if (error := future.exception()) is not None:  # memory is short: the old one serves as well
                traceback.print_exception(error)
                part.threads = self.threads
            else:
                fresh = future.result()
                part.session, part.threads = fresh.session, fresh.threads
                part.made += 1
            self._rest_until_s = time.monotonic() + POLL_S
        if time.monotonic() < self._rest_until_s:
            return
        if stale := next((part for part in parts if part.threads != self.threads), None):
            self._renewing = (stale, self._maker.submit(self._make, source, stale.start, stale.end))

    def _make(self, source: Source, start: int, end: int) -> Part:
        self.made_count += 1
        if (start, end) == HEAD:
            return head_part(source, self.threads)
        return layers_part(source, start, end, self.threads)


def _stored_bytes(source: Source, span: tuple[int, int]) -> int:
    if span == HEAD:
        return source.weights.outer_bytes("output") or source.weights.outer_bytes("token_embd")
    return sum(source.weights.layer_bytes(layer) for layer in range(*span))


def _patiently(future: Future[Part]) -> Generator[None, None, Part]:
    while True:
        try:
            return future.result(POLL_S)
        except NotYet:
            if future.done():  # the work itself raised it
                raise
            yield
