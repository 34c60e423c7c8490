"""Which nodes serve a request: a walk over the held ranges from the first layer to the last.

Any sub-range of a held range may be used. Fewest stages wins; among equal ones the least loaded, then the smallest id.
Ranges that an older plan left behind are used only while the new plan's are not all ready.
"""

from __future__ import annotations

from collections.abc import Iterable

from node.errors import NoRoute
from node.wire.frames import Hop
from node.wire.records import HeldRange, NodeRecord


def walk(layers: int, records: Iterable[NodeRecord]) -> tuple[Hop, ...]:
    """A chain of hops that tiles layers [0, layers) with ranges that live members hold.

    Raises:
        NoRoute: layers that no live member holds; names the first such range.
    """
    held = [(record, stage) for record in records for stage in record.held if stage.state != "loading"]
    ready = [(record, stage) for record, stage in held if stage.state == "ready"]
    try:
        return _walk(layers, ready)
    except NoRoute:
        return _walk(layers, held)


def _walk(layers: int, held: list[tuple[NodeRecord, HeldRange]]) -> tuple[Hop, ...]:
    hops: list[Hop] = []
    reached = 0
    while reached < layers:
        usable = [(record, stage) for record, stage in held if stage.start <= reached < stage.end <= layers]
        if not usable:
            gap_end = min((stage.start for _, stage in held if stage.start > reached), default=layers)
            raise NoRoute(
                f"layers {reached}–{gap_end - 1} of {layers} have no ready node; "
                "wait for one to load or return, or see `parallax status`"
            )
        record, stage = min(
            usable, key=lambda pair: (-pair[1].end, pair[0].sessions + pair[0].queue_depth, pair[0].node_id)
        )
        hops.append(Hop(record.node_id, reached, stage.end))
        reached = stage.end
    return tuple(hops)
