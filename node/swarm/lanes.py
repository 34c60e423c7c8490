"""How a lane of a link is opened over a connection: the one place that knows what a lane runs on.

A direct connection of another kind (TLS) is chosen here: it needs to be a `FrameStream`, and nothing above it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.swarm.base import LANES, Lane
from node.swarm.frame_stream import FrameStream

if TYPE_CHECKING:
    from node.swarm.connection import Connection

PROTOCOLS: dict[Lane, str] = {lane: f"/parallax/{lane}/1" for lane in LANES}

STALLED_AFTER_S: dict[Lane, float] = {"steps": 5.0, "bulk": 20.0}
"""A neighbour that takes nothing for so long is given up. A prompt may have to wait for others' prompts at a slow node;
decode frames are read at once by whoever lives."""


async def open_lane(connection: Connection, lane: Lane) -> FrameStream:
    """Our sending half. Raises LinkClosed."""
    stream = await connection.open(PROTOCOLS[lane])
    stream.stalled_after_s = STALLED_AFTER_S[lane]
    if lane == "bulk":
        stream.give_way()
    return stream


def lane_of(protocol: str | None) -> Lane | None:
    """Which lane a neighbour has opened to us with that protocol, if it is one."""
    return next((lane for lane in LANES if PROTOCOLS[lane] == protocol), None)
