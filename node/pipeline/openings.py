"""Sequences between their `Open` and the engine's word that there is room, and those that were closed already.

Frames go hop by hop, but a `Close` comes straight from the head: it may overtake the `Open` that it belongs to.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from node.pipeline.stage_session import expected_body_bytes, sender_of
from node.swarm.base import Arrival
from node.wire.frames import Activations, Open, Sampled, Tokens
from node.wire.ids import NodeId

REMEMBERED_CLOSES = 4096
"""An `Open` that comes later than 4,096 other closings was on its way for longer than any head waits."""

HELD_BACK_BYTES = 64 * 1024 * 1024
"""Of one sequence's frames; a head has fewer prompt chunks than hops under way."""

Key = tuple[str, int]


@dataclass(slots=True)
class Opening:
    """One `Open` that waits for the engine, and the frames behind it."""

    opened: Open
    held_back: list[Arrival] = field(default_factory=list)
    held_back_bytes: int = 0


class Openings:
    """What is being opened, and what must not be opened any more."""

    def __init__(self) -> None:
        self._opening: dict[Key, Opening] = {}
        self._closed: OrderedDict[tuple[str, NodeId], None] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._opening

    def __len__(self) -> int:
        return len(self._opening)

    def begin(self, opened: Open) -> bool:
        """Note an `Open`; False where its head has closed it already."""
        if (opened.session, NodeId(opened.head)) in self._closed:
            return False
        self._opening[opened.session, opened.hop] = Opening(opened)
        return True

    def hold_back(self, key: Key, arrival: Arrival, frame: Tokens | Activations | Sampled) -> bool:
        """Keep a frame until its sequence is open; False where it is not one that an honest hop would send.

        A frame from anyone but the hop that it should come from is ignored.
        """
        opening = self._opening[key]
        if arrival.peer != sender_of(opening.opened, frame):
            return True
        size_bytes = len(arrival.body)
        opening.held_back_bytes += size_bytes
        honest = (
            size_bytes == expected_body_bytes(frame)
            and opening.held_back_bytes <= HELD_BACK_BYTES
            and len(opening.held_back) <= len(opening.opened.chain) + 1
        )
        if honest:
            opening.held_back.append(arrival)
        return honest

    def finish(self, key: Key) -> list[Arrival] | None:
        """The frames held back; None where the sequence was closed or given up meanwhile."""
        opening = self._opening.pop(key, None)
        return None if opening is None else opening.held_back

    def close(self, session: str, head: NodeId) -> None:
        """The head has closed it: forget it, and do not open it later."""
        for key, opening in list(self._opening.items()):
            if key[0] == session and opening.opened.head == head:
                del self._opening[key]
        self._closed[session, head] = None
        while len(self._closed) > REMEMBERED_CLOSES:
            self._closed.popitem(last=False)

    def give_up(self, key: Key) -> Open | None:
        """Forget one; its `Open`, for telling its head."""
        opening = self._opening.pop(key, None)
        return None if opening is None else opening.opened
