"""Whom we dial and how often: what others say makes us knock at few doors, and never starves a member."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from node.errors import SwarmError
from node.swarm.addresses import ADDRESS_LIMIT, Address
from node.swarm.dial_budget import KEYS_LIMIT, Bucket, DialBudget
from node.swarm.dialer import HOPELESS_AFTER, PEER_LIMIT, Dialer
from node.swarm.suggestions import KEPT_S, POOL_LIMIT, Suggestions
from node.wire.ids import NodeId

OWN, ADA, LIAR = NodeId("own"), NodeId("ada"), NodeId("liar")


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def place(number: int, peer: NodeId | None = None) -> Address:
    return Address("ip4", f"192.168.{number // 250}.{number % 250 + 1}", 4001, peer)


class Dials:
    """Counts them; nobody answers."""

    def __init__(self) -> None:
        self.of: Counter[NodeId] = Counter()

    async def dial(self, peer: NodeId, source: NodeId | None) -> None:
        self.of[peer] += 1
        await trio.lowlevel.checkpoint()
        raise SwarmError("/ip4/192.0.2.1/tcp/4001: Connection refused")


def test_two_hundred_invented_members_cost_a_third_party_few_connections() -> None:
    """200 of them with 16 addresses each, tried as often as we would like to for a minute."""
    budget, knocks = DialBudget(), 0
    for second in range(50):
        for member in range(200):
            for port in range(ADDRESS_LIMIT):
                knocks += budget.allows(Address("ip4", "203.0.113.5", 1 + member * 16 + port), LIAR, float(second))
    assert knocks <= 24 + 24


def test_where_a_peer_names_many_places_each_has_its_turn() -> None:
    """A peer with 16 addresses is tried every 15 s: no place may wait for ever behind those that are named first."""
    budget, places = DialBudget(), [place(number) for number in range(ADDRESS_LIMIT)]
    dialed: Counter[Address] = Counter()
    for tried in range(40):
        dialed.update(budget.choose(ADA, places, ADA, tried * 15.0))
    assert set(dialed) == set(places)
    assert 2 * min(dialed.values()) >= max(dialed.values())
    two, other = places[:2], NodeId("other")
    assert budget.choose(other, two, other, 600.0) == two, "where there is room, in their order"


def test_many_liars_together_do_not_make_us_knock_without_end() -> None:
    budget, by_host = DialBudget(), Counter[str]()
    for second in range(60):
        for liar in range(300):
            one, many = Address("ip4", "203.0.113.5", liar + 1), place(second * 300 + liar)
            for address in (one, many):
                by_host[address.host] += budget.allows(address, NodeId(f"liar{liar}"), float(second))
    assert by_host["203.0.113.5"] <= 32 + 60
    assert by_host.total() <= 256 + 240


def test_an_honest_member_is_dialed_while_another_source_lies() -> None:
    budget = DialBudget()
    while budget.allows(Address("ip4", "203.0.113.5", 1), LIAR, 0.0):
        pass
    assert not budget.allows(place(1), LIAR, 0.0)
    assert budget.allows(place(1), ADA, 0.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10)), max_size=200))
def test_a_bucket_gives_no_more_than_its_burst_and_what_came_since(asked: list[tuple[int, float]]) -> None:
    bucket, now, taken = Bucket(5, 60), 0.0, Counter[int]()
    for key, pause_s in asked:
        now += pause_s
        if bucket.left(key, now) >= 1:
            bucket.take(key, now)
            taken[key] += 1
        assert taken[key] <= 5 + now + 1e-6


def test_sources_without_number_are_not_remembered_without_end() -> None:
    bucket = Bucket(5, 60)
    for number in range(3 * KEYS_LIMIT):
        bucket.take(number, float(number))
    assert len(bucket._left) <= KEYS_LIMIT


def test_suggestions_are_few_and_pass_and_a_members_stays_longest() -> None:
    pool = Suggestions()
    assert pool.add(place(1, ADA), 0.0, lambda peer: peer == ADA) == ADA
    for number in range(300):
        pool.add(place(number, NodeId(f"made up {number}")), 0.0, lambda peer: peer == ADA)
    assert len(pool) == POOL_LIMIT
    assert pool.addresses(ADA, 1.0) == (place(1),)
    assert pool.addresses(NodeId("made up 0"), 1.0) == ()
    assert pool.addresses(NodeId("made up 299"), 1.0) == (place(299),)
    assert pool.addresses(ADA, KEPT_S + 1) == ()
    assert len(pool) == 0
    assert pool.add(place(1), 0.0, lambda peer: False) is None, "nobody is named"


def test_made_up_peers_never_keep_a_member_from_being_dialed() -> None:
    """Before, 256 of them took all places for ever."""

    async def main() -> None:
        dials, wanted = Dials(), {ADA}
        dialer = Dialer(OWN, lambda peer: False, wanted.__contains__)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.run, dials.dial)
            for number in range(2 * PEER_LIMIT):
                dialer.pursue(NodeId(f"made up {number}"), polite=False)
            dialer.pursue(ADA, polite=False)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert dials.of[ADA] >= 4
        assert sum(dials.of.values()) == dials.of[ADA], "nobody wants the others"

    run(main)


def test_a_peer_that_nobody_wants_any_more_is_let_go_and_may_come_again() -> None:
    async def main() -> None:
        dials, wanted = Dials(), {ADA}
        dialer = Dialer(OWN, lambda peer: False, wanted.__contains__)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.run, dials.dial)
            dialer.pursue(ADA, polite=False)
            await trio.sleep(60)
            assert dialer.is_hopeless(ADA)
            before = dials.of[ADA]
            assert before >= HOPELESS_AFTER
            wanted.clear()
            await trio.sleep(600)
            assert dials.of[ADA] == before
            wanted.add(ADA)
            dialer.pursue(ADA, polite=False)
            await trio.sleep(1)
            assert dials.of[ADA] > before
            nursery.cancel_scope.cancel()

    run(main)


def test_on_another_network_everyone_lost_is_tried_at_once() -> None:
    async def main() -> None:
        dials = Dials()
        dialer = Dialer(OWN, lambda peer: peer == NodeId("here"), lambda peer: True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.run, dials.dial)
            for peer in (ADA, NodeId("here")):
                dialer.pursue(peer, polite=False)
            await trio.sleep(300)
            before = dials.of[ADA]
            dialer.hurry_all()
            await trio.sleep(0.1)
            assert dials.of[ADA] == before + 1
            assert dials.of[NodeId("here")] == 0
            nursery.cancel_scope.cancel()

    run(main)


def test_the_log_says_what_is_tried_and_does_not_fill_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        dialer = Dialer(OWN, lambda peer: False, lambda peer: True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.run, Dials().dial)
            dialer.pursue(ADA, polite=False)
            await trio.sleep(24 * 3600)
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.INFO):
        run(main)
    lines = [record.message for record in caplog.records]
    assert "/ip4/192.0.2.1/tcp/4001: Connection refused" in lines[0]
    assert 3 <= len(lines) <= 20, "a day"
