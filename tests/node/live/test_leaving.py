"""A node that is asked to end: what runs ends, others have its layers before it goes, and no wait is without an end."""

from __future__ import annotations

import msgspec
import pytest
import trio

from node.errors import RequestError
from node.live.leaving import ANSWERS_S, HAND_OVER_S, REPLAN_S
from tests.fakes.engine import expected_tokens
from tests.node.live.test_live import FACTS, LAYERS, MIB, Lab, Peer, in_a_lab

SLOW_STEP_S = 0.05
"""An answer without an end has few tokens then: the toy engine looks at all of them for each."""


async def leave(lab: Lab, peer: Peer) -> float:
    """Seconds until it may end; then it says goodbye."""
    began_s = trio.current_time()
    await peer.leaving.run()
    took_s = trio.current_time() - began_s
    peer.scope.cancel()
    lab.network.leave(peer.swarm)
    return took_s


@in_a_lab
async def test_others_have_its_layers_before_it_goes_and_no_request_fails_meanwhile(lab: Lab) -> None:
    ada, bob, cy = [await lab.join(name, wants=name == "ada") for name in ("ada", "bob", "cy")]
    await trio.sleep(10)
    answered: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ada.keep_asking, answered)
        took_s = await leave(lab, cy)
        before = len(answered)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert 1 < took_s < 15, "as long as loading takes, and some to notice"
    assert len(answered) > before > 10
    assert sorted(peer.range for peer in (ada, bob) if peer.range) == [(0, 3), (3, 6)]


@in_a_lab
async def test_the_planner_itself_leaves_and_another_plans(lab: Lab) -> None:
    peers = [await lab.join(name, wants=name == "a") for name in ("a", "b", "c")]
    await trio.sleep(10)
    planner = min(peers, key=lambda peer: peer.swarm.node_id)
    await leave(lab, planner)
    left = [peer for peer in peers if peer is not planner]
    assert sorted(peer.range for peer in left if peer.range) == [(0, 3), (3, 6)]
    assert await left[0].ask() == expected_tokens([1, 2, 3], LAYERS, 5)


@in_a_lab
async def test_a_node_alone_lets_its_answer_end_and_goes(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    tokens: list[int] = []

    async def ask() -> None:
        tokens.extend(await ada.ask(count=200))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.05)
        took_s = await leave(lab, ada)
        nursery.cancel_scope.cancel()
    assert len(tokens) == 200
    assert took_s < ANSWERS_S


@in_a_lab
async def test_an_idle_node_alone_goes_at_once(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    assert await leave(lab, ada) == 0


@in_a_lab
async def test_nobody_waits_where_all_are_leaving(lab: Lab) -> None:
    peers = [await lab.join(name, wants=name == "a") for name in ("a", "b", "c")]
    await trio.sleep(10)
    with trio.fail_after(REPLAN_S):
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(leave, lab, peer)


@in_a_lab
async def test_where_the_others_have_no_room_it_waits_for_a_plan_and_no_longer(lab: Lab) -> None:
    lab.facts = msgspec.structs.replace(FACTS, layer_bytes=600 * MIB)
    small = {"memory_cap_bytes": 2500 * MIB}
    ada, bob = [await lab.join(name, wants=name == "ada", **small) for name in ("ada", "bob")]
    await trio.sleep(10)
    assert sorted(peer.range for peer in (ada, bob) if peer.range) == [(0, 3), (3, 6)]
    assert REPLAN_S <= await leave(lab, bob) < REPLAN_S + 1


@in_a_lab
async def test_others_that_never_get_ready_are_not_waited_for_without_an_end(lab: Lab) -> None:
    ada, bob = [await lab.join(name, wants=name == "ada") for name in ("ada", "bob")]
    await trio.sleep(10)
    ada.engines[-1].load_s = 1e6
    assert HAND_OVER_S <= await leave(lab, bob) < HAND_OVER_S + 1


@in_a_lab
async def test_others_that_fail_are_not_waited_for(lab: Lab) -> None:
    ada, bob = [await lab.join(name, wants=name == "ada") for name in ("ada", "bob")]
    await trio.sleep(10)
    ada.desk.missing = True
    assert await leave(lab, bob) < REPLAN_S


@in_a_lab
async def test_an_answer_without_an_end_does_not_keep_it(lab: Lab) -> None:
    ada = await lab.join("ada", wants=True)
    await trio.sleep(5)
    async with trio.open_nursery() as nursery:
        ada.engines[-1].step_s = SLOW_STEP_S
        nursery.start_soon(ada.ask, 100_000)
        await trio.sleep(0.05)
        assert ANSWERS_S <= await leave(lab, ada) < ANSWERS_S + 1
        nursery.cancel_scope.cancel()


@in_a_lab
async def test_an_answer_that_runs_on_after_others_have_the_layers_does_not_keep_it_and_is_told_why(lab: Lab) -> None:
    ada, bob = [await lab.join(name, wants=name == "ada") for name in ("ada", "bob")]
    await trio.sleep(10)
    said: list[str] = []
    for peer in (ada, bob):
        peer.engines[-1].step_s = SLOW_STEP_S

    async def ask() -> None:
        try:
            await bob.ask(100_000)
        except RequestError as error:
            said.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.05)
        began_s = trio.current_time()
        await bob.leaving.run()
        assert trio.current_time() - began_s < ANSWERS_S + 1
        assert ada.range == (0, LAYERS)
        bob.dispatcher.close("it was asked to end")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert said == ["it was asked to end"]
    with pytest.raises(RequestError, match="it was asked to end"):
        await bob.ask()
