"""One member cannot end the service: its plans are judged before they are followed, outranked, and named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from node.live.judging import Look, difference, doubt, nobody_for
from node.live.planner import ASIDE_S, DOUBT_S, UNSERVED_S
from node.wire.events import Notice
from node.wire.ids import NodeId
from node.wire.models import ModelRef
from node.wire.plans import Assignment, Override, Plan, PlanSettings
from tests.fakes.engine import expected_tokens
from tests.fakes.swarm import FakeSwarm, fake_node_id
from tests.node.live.test_live import FACTS, LAYERS, MODEL, SHARE, Lab, Peer, in_a_lab

EVIL = ModelRef("evil", "hub:evil/model@0000", "0000")
JUDGED_S = DOUBT_S + 6


async def three(lab: Lab) -> list[Peer]:
    peers = [await lab.join(name, wants=True, min_nodes=3) for name in ("ada", "bob", "cy")]
    await trio.sleep(8)
    assert {peer.range for peer in peers} == {(0, 2), (2, 4), (4, 6)}
    return peers


def stranger(lab: Lab, **record: Any) -> FakeSwarm:
    """A member whose id goes before all others, and that has not measured itself: it holds nothing and plans badly."""
    return lab.network.add("mallory", node_id=NodeId("12D3KooW" + "0" * 31), machine_id="mallory", **record)


def plan_of(author: FakeSwarm, like: Plan | None, **changes: Any) -> Plan:
    """The next plan after `like`, by `author`."""
    base = like or Plan(0, author.node_id, MODEL, "float32", FACTS, (), settings=SHARE)
    return replace(base, **{"epoch": base.epoch + 1, "author": author.node_id, **changes})


async def answered_throughout(lab: Lab, peer: Peer, seconds: float) -> None:
    """Ask on and on, and get the right answer each time."""
    until_s = trio.current_time() + seconds
    while trio.current_time() < until_s:
        assert await peer.ask() == expected_tokens([1, 2, 3], LAYERS, 5)
        await trio.sleep(0.5)


def said(peer: Peer) -> str:
    return " / ".join(event.text for event in peer.events if isinstance(event, Notice))


def everybody_excluded(peers: Sequence[Peer]) -> PlanSettings:
    return PlanSettings("share", tuple(Override(peer.swarm.node_id, duty="exclude") for peer in peers))


def changes_of(kind: str, peers: Sequence[Peer]) -> dict[str, Any]:
    everything = (Assignment(peers[0].swarm.node_id, 0, LAYERS),)
    return {
        "another model": {"model": EVIL},
        "more layers": {"facts": replace(FACTS, layers=10_000)},
        "layers of another size": {
            "facts": replace(FACTS, layer_bytes=FACTS.layer_bytes * 1000),
            "assignments": everything,
        },
        "everybody excluded": {"settings": everybody_excluded(peers), "assignments": ()},
        "layers given to nobody who is here": {"assignments": (Assignment(fake_node_id("nobody"), 0, LAYERS),)},
    }[kind]


KINDS = (
    "another model",
    "more layers",
    "layers of another size",
    "everybody excluded",
    "layers given to nobody who is here",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_that_would_end_the_service_is_never_followed_and_its_author_is_named(kind: str) -> None:
    async def test(lab: Lab) -> None:
        peers = await three(lab)
        mallory = stranger(lab)
        bad = plan_of(mallory, peers[0].planner.plan, **changes_of(kind, peers))
        await mallory.publish_plan(bad)
        await answered_throughout(lab, peers[0], JUDGED_S)
        for peer in peers:
            plan = peer.planner.plan
            assert plan is not None
            assert (plan.model, plan.facts, plan.settings) == (MODEL, FACTS, lab.settings)
            assert plan.epoch > bad.epoch, "whoever joins hears it instead of the bad one"
            assert peer.swarm.latest_plan == plan
            assert f"plan {bad.epoch} by mallory was set aside" in plan.note
        assert "mallory was set aside" in "".join(said(peer) for peer in peers)
        newcomer = await lab.join("dan")
        await trio.sleep(10)
        await answered_throughout(lab, newcomer, 3)
        assert all(peer.planner.plan and peer.planner.plan.settings == lab.settings for peer in (*peers, newcomer))

    in_a_lab(test)()


@in_a_lab
async def test_an_author_who_goes_on_is_not_heard_for_a_while_and_then_judged_anew(lab: Lab) -> None:
    peers = await three(lab)
    mallory = stranger(lab)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answered_throughout, lab, peers[0], 30.0)
        for _ in range(30):
            await mallory.publish_plan(plan_of(mallory, mallory.latest_plan, model=EVIL))
            await trio.sleep(1)
    epochs = {peer.planner.plan.epoch for peer in peers if peer.planner.plan}
    assert max(epochs) - min(epochs) <= 1
    assert sum(isinstance(event, Notice) for event in peers[0].events) <= 2
    await trio.sleep(ASIDE_S)
    highest = max((peers[0].planner.plan, mallory.latest_plan), key=lambda plan: plan.epoch if plan else 0)
    good = plan_of(mallory, peers[0].planner.plan, epoch=highest.epoch + 1 if highest else 1, note="mended")
    await mallory.publish_plan(good)
    await trio.sleep(1)
    assert {peer.planner.plan for peer in peers} == {good}


@pytest.mark.parametrize("kind", ["more layers", "everybody excluded", "layers given to nobody who is here"])
def test_a_swarm_that_starts_under_a_plan_that_nobody_can_serve_gives_it_up(kind: str) -> None:
    async def test(lab: Lab) -> None:
        mallory = stranger(lab)
        peers = [await lab.join(name, wants=True, min_nodes=3) for name in ("ada", "bob", "cy")]
        await mallory.publish_plan(plan_of(mallory, None, epoch=900, **changes_of(kind, peers)))
        await trio.sleep(UNSERVED_S + 20)
        await answered_throughout(lab, peers[0], 3)
        plans = {peer.planner.plan for peer in peers}
        (plan,) = plans
        assert plan is not None
        assert plan.epoch > 900
        assert (plan.model, plan.facts, plan.settings) == (MODEL, FACTS, lab.settings)
        await lab.join("dan")
        await trio.sleep(10)
        await answered_throughout(lab, peers[0], 3)
        assert peers[0].planner.settings == lab.settings

    in_a_lab(test)()


@in_a_lab
async def test_a_swarm_that_starts_under_a_model_that_cannot_be_had_takes_the_one_that_is_asked_for(lab: Lab) -> None:
    mallory = stranger(lab, wanted_model=EVIL)
    peers = [await lab.join(name, wants=True, min_nodes=3) for name in ("ada", "bob", "cy")]
    for peer in peers:
        peer.desk.lacks = {EVIL}
    assignments = tuple(Assignment(peer.swarm.node_id, 2 * i, 2 * i + 2) for i, peer in enumerate(peers))
    await mallory.publish_plan(plan_of(mallory, None, epoch=900, model=EVIL, assignments=assignments))
    await trio.sleep(UNSERVED_S + 40)
    await answered_throughout(lab, peers[0], 3)
    assert {peer.planner.plan.model for peer in peers if peer.planner.plan} == {MODEL}
    assert "its model evil cannot be had" in said(peers[0])


@in_a_lab
async def test_a_model_that_a_member_asks_for_and_that_can_be_had_is_changed_to(lab: Lab) -> None:
    peers = await three(lab)
    other = ModelRef("other", "test", "other")
    author = stranger(lab, wanted_model=other)
    await author.publish_plan(plan_of(author, peers[0].planner.plan, model=other))
    await trio.sleep(15)
    assert {peer.planner.plan.model for peer in peers if peer.planner.plan} == {other}
    await answered_throughout(lab, peers[0], 3)


@in_a_lab
async def test_a_model_that_is_asked_for_and_cannot_be_had_is_not_changed_to(lab: Lab) -> None:
    peers = await three(lab)
    for peer in peers:
        peer.desk.lacks = {EVIL}
    author = stranger(lab, wanted_model=EVIL)
    await author.publish_plan(plan_of(author, peers[0].planner.plan, model=EVIL))
    await answered_throughout(lab, peers[0], JUDGED_S)
    assert {peer.planner.plan.model for peer in peers if peer.planner.plan} == {MODEL}


@in_a_lab
async def test_a_model_that_could_not_be_had_once_is_looked_for_again(lab: Lab) -> None:
    peers = await three(lab)
    for peer in peers:
        peer.desk.lacks = {EVIL}
    author = stranger(lab, wanted_model=EVIL)
    await author.publish_plan(plan_of(author, peers[0].planner.plan, model=EVIL))
    await trio.sleep(JUDGED_S)
    for peer in peers:
        peer.desk.lacks = set()  # the hub is back
    await trio.sleep(ASIDE_S + 5)
    await author.publish_plan(plan_of(author, peers[0].planner.plan, model=EVIL))
    await trio.sleep(JUDGED_S)
    assert {peer.planner.plan.model for peer in peers if peer.planner.plan} == {EVIL}


@in_a_lab
async def test_a_plan_that_comes_before_the_records_it_was_made_of_is_followed_when_they_are_here(lab: Lab) -> None:
    peers = await three(lab)
    author, late = stranger(lab), fake_node_id("late")
    good = plan_of(author, peers[0].planner.plan, assignments=(Assignment(late, 0, LAYERS),))
    await author.publish_plan(good)
    await trio.sleep(2)
    assert all(peer.planner.plan != good for peer in peers)
    await lab.join("late")
    await trio.sleep(JUDGED_S)
    assert all(peer.planner.plan and peer.planner.plan.epoch >= good.epoch for peer in peers)
    assert not any(said(peer) for peer in peers)


A, B = (fake_node_id(name) for name in "ab")


def test_where_nothing_can_be_lost_any_plan_is_followed() -> None:
    current = Plan(1, A, MODEL, "float32", FACTS, (Assignment(A, 0, 3),))
    anything = Plan(2, B, EVIL, "float32", replace(FACTS, layers=9), ())
    assert doubt(anything, None, {}, None) == ""
    assert doubt(anything, current, {}, Look(FACTS)) == ""


def test_what_an_owner_has_pinned_elsewhere_is_nobodys_layers() -> None:
    async def test(lab: Lab) -> None:
        ada = await lab.join("ada", wants=True, pinned_layers=(0, 3))
        await trio.sleep(1)
        records = ada.swarm.members()
        whole = Plan(1, A, MODEL, "float32", FACTS, (Assignment(ada.swarm.node_id, 0, 6),))
        assert nobody_for(whole, records) == (0, 6)
        assert nobody_for(replace(whole, assignments=(Assignment(ada.swarm.node_id, 0, 3),)), records) == (3, 6)

    in_a_lab(test)()


def test_sizes_may_differ_a_little_between_versions_and_counts_may_not() -> None:
    plan = Plan(1, A, MODEL, "float32", FACTS, ())
    assert difference(plan, FACTS) == ""
    assert difference(plan, replace(FACTS, layer_bytes=int(FACTS.layer_bytes * 1.1))) == ""
    assert "layer_bytes" in difference(plan, replace(FACTS, layer_bytes=FACTS.layer_bytes * 2))
    assert "says layers 6 of toy, whose files say 7" in difference(plan, replace(FACTS, layers=7))
