"""The stage that a route asks for: a held range as it is, or a part of one, which shares its tensors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from node.engine.base import Engine, Stage, StageSpec
from node.errors import Overloaded
from node.live.served_ranges import ServedRange, ServedRanges

MAX_PARTS = 4
"""At a time. Routes prefer whole ranges, so there are rarely more kinds; each costs a module tree in the worker."""


class Parts:
    """Looks stages up, and makes the parts that are missing."""

    def __init__(
        self,
        ranges: ServedRanges,
        spec_of_part: Callable[[ServedRange, int, int], StageSpec | None],
        uses: Callable[[Stage], bool],
        close: Callable[[ServedRange, str], Awaitable[None]],
    ) -> None:
        self._ranges, self._spec_of_part, self._uses, self._close = ranges, spec_of_part, uses, close
        self._one_at_a_time = trio.Lock()

    async def lookup(self, engine: Engine | None, start: int, end: int, weights: str) -> Stage | None:
        """The stage for exactly [start, end), or None where this node does not hold these layers.

        Raises:
            Overloaded: as many parts as there may be are in use.
            EngineError: the part cannot be loaded.
        """
        if (stage := self._exact(start, end, weights)) is not None:
            return stage
        async with self._one_at_a_time:
            if (stage := self._exact(start, end, weights)) is not None:
                return stage
            wider = self._ranges.wider(start, end, weights)
            if wider is None or engine is None:
                return None
            spec = self._spec_of_part(wider, start, end)
            if spec is None:
                return None
            wider.openings += 1
            try:
                await self._make_room()
                part = await load_part(engine, self._ranges, wider, spec)
            finally:
                wider.openings -= 1
            return part.stage if part is not None else None

    def _exact(self, start: int, end: int, weights: str) -> Stage | None:
        held = self._ranges.exact(start, end, weights)
        if held is None:
            return None
        held.last_used_s = trio.current_time()
        return held.stage

    async def _make_room(self) -> None:
        parts = self._ranges.parts()
        if len(parts) < MAX_PARTS:
            return
        idle = [part for part in parts if not self._uses(part.stage)]
        if not idle:
            raise Overloaded(f"all {MAX_PARTS} parts of this node's layers are in use; try again in a moment")
        oldest = min(idle, key=lambda part: part.last_used_s)
        self._ranges.remove(oldest)
        await self._close(oldest, "another part of its layers was asked for")


async def load_part(engine: Engine, ranges: ServedRanges, wider: ServedRange, spec: StageSpec) -> ServedRange | None:
    """Load a range that lies in `wider`, so that only tensors are shared; None where `wider` was closed meanwhile.

    Raises:
        EngineError: it cannot be loaded.
    """
    stage = await engine.load(spec)
    if wider not in ranges:
        await stage.close()
        return None
    part = ServedRange(
        stage, spec.model_folder, spec.start, spec.end, wider.weights, spec.kv_bytes, wider.epoch, wider.state
    )
    part.part, part.last_used_s = True, trio.current_time()
    ranges.add(part)
    return part
