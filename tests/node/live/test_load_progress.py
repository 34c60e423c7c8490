"""What people are told of a load."""

from __future__ import annotations

from node.live.load_progress import load_progress
from node.wire.events import ModelProgress
from tests.fakes.swarms import FACTS, MODEL, plan

ALL_BYTES = FACTS.layers * FACTS.layer_bytes


def test_a_load_tells_layers_and_bytes_and_which_layers_where_it_is_not_all_of_them() -> None:
    told: list[ModelProgress] = []
    whole = load_progress(plan(), 0, FACTS.layers, told.append)
    for share in (0.0, 0.5, 1.0):
        whole(share)
    assert [each.text for each in told] == [
        f"{done} of {FACTS.layers} layers" for done in (0, FACTS.layers // 2, FACTS.layers)
    ]
    assert [each.done_bytes for each in told] == [0, ALL_BYTES // 2, ALL_BYTES]
    assert {(each.model, each.phase, each.total_bytes) for each in told} == {(MODEL.name, "load", ALL_BYTES)}
    load_progress(plan(), 3, 7, told.append)(0.25)
    assert told[-1].text == "1 of 4 layers, 3–6"
    assert told[-1].total_bytes == 4 * FACTS.layer_bytes
