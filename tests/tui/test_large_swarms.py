"""Views of a thousand members: the work for a picture grows with the members, not with their square."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from msgspec.structs import replace

from node.journal.state import NodeView, State
from node.wire.ids import NodeId
from node.wire.records import HeldRange
from parallax_tui.headless.status_report import as_json, as_text
from parallax_tui.state.layers import Segment, layer_map, segments
from parallax_tui.state.live import Live
from parallax_tui.state.nodes import node_table
from parallax_tui.state.status import status_line
from tests.fakes.swarms import DESK, record, three_nodes


def swarm_of(members: int) -> State:
    """Members of machines of their own, on overlapping ranges of every length."""
    nodes = {}
    for index in range(members):
        node_id, start = NodeId(f"12D3KooW{index:044d}"), index * 7 % 29
        held = (HeldRange(start, min(30, start + 1 + index % 9), "loading" if index % 5 == 0 else "ready", 1),)
        one = record(DESK, name=f"node-{index}", machine_id=f"m{index}", held=held, rtt_ms={})
        nodes[node_id] = NodeView(replace(one, node_id=node_id), 0.0)
    return three_nodes(nodes=nodes)


def calls_of(work: Callable[[], object]) -> int:
    """Functions called meanwhile, built-in ones too."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "picture",
    [
        lambda state: node_table(Live().at(state), 120),
        lambda state: layer_map(Live().at(state), 120),
        lambda state: status_line(Live().at(state), 120),
        as_text,
        as_json,
    ],
    ids=["table", "layers", "status line", "status as text", "status as JSON"],
)
def test_four_times_the_members_are_four_times_the_work(picture: Callable[[State], object]) -> None:
    few, many = swarm_of(250), swarm_of(1000)
    assert calls_of(lambda: picture(many)) < 5.5 * calls_of(lambda: picture(few))


def test_the_map_is_that_of_a_look_at_each_layer() -> None:
    state = swarm_of(40)
    rank = ("ready", "draining", "loading")
    for part in segments(state):
        for layer in range(part.start, part.end):
            holders = sorted(
                (rank.index(held.state), held.start, node_id)
                for node_id, view in state.nodes.items()
                for held in view.record.held
                if held.start <= layer < held.end
            )
            assert (part.node_id, part.kind, part.replicas) == (
                (holders[0][2], rank[holders[0][0]], len(holders) - 1) if holders else (None, "none", 0)
            )
    assert [part.end for part in segments(state)[:-1]] == [part.start for part in segments(state)[1:]]


def test_layers_that_nobody_holds_and_ranges_beyond_the_model() -> None:
    state = three_nodes(nodes={DESK: NodeView(record(DESK, held=(HeldRange(4, 99, "ready", 1),)), 0.0)})
    assert segments(state) == (Segment(0, 4, "none", None), Segment(4, 30, "ready", DESK))
