"""Two nodes that dial each other at the same moment: which connection is used, and when the other may go."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from node.swarm.connections import PER_PEER_LIMIT, REDUNDANT_AFTER_S, Connections
from node.wire.ids import NodeId

SMALL, LARGE = NodeId("a"), NodeId("b")


@dataclass(eq=False)
class HasPeer:
    peer: NodeId
    dialed: bool
    admitted_s: float = 0.0
    life: bytes = b"1"
    links: int = 0
    heard_s: float = 1e9


def both_views(
    pairs: list[tuple[bool, float]],
) -> tuple[Connections[HasPeer], Connections[HasPeer], list[tuple[HasPeer, HasPeer]]]:
    """The same connections as the small and as the large id see them; (dialed by the small one, when)."""
    small, large = Connections[HasPeer](SMALL), Connections[HasPeer](LARGE)
    made = [(HasPeer(LARGE, by_small, when), HasPeer(SMALL, not by_small, when)) for by_small, when in pairs]
    for of_small, of_large in made:
        small.add(of_small)
        large.add(of_large)
    return small, large, made


def test_both_sides_use_the_connection_that_the_smaller_id_dialed() -> None:
    small, large, made = both_views([(False, 0.0), (True, 0.1)])
    assert small.best(LARGE) is made[1][0]
    assert large.best(SMALL) is made[1][1]


def test_only_the_smaller_id_closes_and_never_in_a_hurry() -> None:
    small, large, made = both_views([(False, 0.0), (True, 0.1)])
    assert small.redundant(REDUNDANT_AFTER_S) == []
    assert small.redundant(REDUNDANT_AFTER_S + 0.2) == [made[0][0]]
    assert large.redundant(1000.0) == []


def test_a_connection_in_use_or_one_whose_better_is_silent_stays() -> None:
    small, _, made = both_views([(False, 0.0), (True, 0.0)])
    made[0][0].links = 1
    assert small.redundant(100.0) == []
    made[0][0].links = 0
    made[1][0].heard_s = 90.0
    assert small.redundant(100.0) == []


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10)), min_size=1, max_size=PER_PEER_LIMIT))
def test_whatever_becomes_redundant_one_connection_remains_and_both_mean_the_same(
    pairs: list[tuple[bool, float]],
) -> None:
    small, large, made = both_views(pairs)
    for one in small.redundant(1000.0):
        small.remove(one)
        large.remove(next(theirs for ours, theirs in made if ours is one))
    assert len(small.all()) == len(large.all()) == 1
    assert small.best(LARGE) is not None
    assert large.best(SMALL) is not None


def test_a_new_life_of_the_peer_makes_its_old_connections_obsolete() -> None:
    held = Connections[HasPeer](SMALL)
    old = HasPeer(LARGE, dialed=True, life=b"1")
    new = HasPeer(LARGE, dialed=False, life=b"2")
    assert held.add(old) == (True, [])
    assert held.add(new) == (False, [old])
    assert held.best(LARGE) is new
    assert not held.remove(old), "another one is left"
    assert held.remove(new)
    assert LARGE not in held


def test_a_peer_that_keeps_connecting_loses_its_oldest() -> None:
    held = Connections[HasPeer](SMALL)
    first = HasPeer(LARGE, dialed=False)
    held.add(first)
    for _ in range(PER_PEER_LIMIT - 1):
        assert held.add(HasPeer(LARGE, dialed=False)) == (False, [])
    assert held.add(HasPeer(LARGE, dialed=False)) == (False, [first])
