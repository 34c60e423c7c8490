"""Plans of large swarms travel whole; only what is for people gives way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.errors import BadWireData
from node.wire.codec import encode
from node.wire.control import CONTROL_LIMIT_BYTES, Envelopes
from node.wire.models import ModelFacts, ModelRef
from node.wire.plan_size import PLAN_LIMIT_BYTES, fit
from node.wire.plans import Assignment, Override, Plan, PlanSettings, Standby
from node.wire.statements import Envelope

IDS = [f"12D3KooW{number:044d}" for number in range(1000)]
FACTS = ModelFacts(61, 10**9, 10**9, 10**9, 10**5, 7168, 129_280, 163_840)
EMPTY = Plan(1, IDS[0], ModelRef("m", "default", "0" * 64), "bfloat16", FACTS, ())
ASSIGNED = tuple(Assignment(node, layer % 61, layer % 61 + 1) for layer, node in enumerate(IDS))
BY_HAND = PlanSettings("balanced", tuple(Override(node, (10, 11), 2**40, "drain") for node in IDS))


def test_a_thousand_nodes_with_ranges_and_settings_by_hand_fit_as_they_are() -> None:
    plan = replace(EMPTY, assignments=ASSIGNED, settings=BY_HAND)
    assert fit(plan) is plan


def test_reasons_are_shortened_and_nothing_else() -> None:
    idle = tuple(Standby(node, "no room for a layer; " * 10) for node in IDS)
    fitted = fit(replace(EMPTY, standby=idle))
    assert [each.node_id for each in fitted.standby] == IDS
    assert {each.reason for each in fitted.standby} == {idle[0].reason[:79] + "…"}
    assert replace(fitted, standby=()) == EMPTY


def test_names_of_nodes_with_settings_go_where_nothing_else_helps() -> None:
    named = replace(BY_HAND, overrides=tuple(replace(each, name="n" * 64) for each in BY_HAND.overrides))
    fitted = fit(replace(EMPTY, assignments=ASSIGNED, settings=named))
    assert fitted.settings == BY_HAND
    few = replace(named, overrides=named.overrides[:100])
    assert fit(replace(EMPTY, assignments=ASSIGNED, settings=few)).settings == few


def test_what_no_shortening_helps_is_refused_before_anybody_follows_it() -> None:
    with pytest.raises(BadWireData, match=f"at most {PLAN_LIMIT_BYTES}"):
        fit(replace(EMPTY, assignments=tuple(Assignment(f"{number:0120}", 0, 1) for number in range(4000))))


@given(st.integers(0, 1000), st.integers(0, 400), st.booleans())
def test_a_plan_for_a_thousand_nodes_always_fits_the_wire(standing_by: int, reason: int, by_hand: bool) -> None:
    plan = replace(
        EMPTY,
        assignments=ASSIGNED[standing_by:],
        standby=tuple(Standby(node, "ü" * reason) for node in IDS[:standing_by]),
        settings=BY_HAND if by_hand else PlanSettings(),
    )
    payload = encode(fit(plan))
    assert len(payload) <= PLAN_LIMIT_BYTES
    message = Envelopes((Envelope("plan", IDS[0], payload, b"s" * 64),))
    assert len(encode(message)) <= CONTROL_LIMIT_BYTES
