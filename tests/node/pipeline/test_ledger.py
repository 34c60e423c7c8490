"""A head's own changes count until a node's record tells of them, and never twice for long."""

from __future__ import annotations

from msgspec.structs import replace

from node.pipeline.ledger import FORGET_S, SETTLE_S, Ledger
from node.plan.live.offers import NONE_UNTOLD, Untold
from node.wire.ids import NodeId
from tests.node.plan.live.test_decide import record

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_request_counts_at_once_and_until_a_newer_record_has_come() -> None:
    clock = Clock()
    ledger, told = Ledger(clock), record("a", seq=5)
    ledger.heard(told)
    ledger.opened([A, B, A, B], 30)
    ledger.opened([A, C], 30)
    assert [ledger.untold(node) for node in (A, B, C)] == [Untold(1.0, 90), Untold(0.5, 60), Untold(0.5, 30)]
    clock.now_s += SETTLE_S / 2
    ledger.heard(replace(told, seq=6))
    clock.now_s += SETTLE_S
    ledger.heard(replace(told, seq=6))
    assert ledger.untold(A) == Untold(1.0, 90), "that record was written before the node knew"
    ledger.heard(replace(told, seq=7))
    assert ledger.untold(A) == NONE_UNTOLD


def test_an_end_counts_at_once_too() -> None:
    clock = Clock()
    ledger, told = Ledger(clock), record("a", seq=5)
    ledger.heard(told)
    entry = ledger.opened([A], 30)
    clock.now_s += 1
    ledger.heard(replace(told, seq=6))
    ledger.closed(entry)
    assert ledger.untold(A) == Untold(-1, -30), "the record still has it"
    clock.now_s += SETTLE_S / 10  # a record that comes now tells it: nobody is sent to room that is not there
    ledger.heard(replace(told, seq=7))
    assert ledger.untold(A) == NONE_UNTOLD


def test_what_comes_and_goes_between_two_records_adds_up_to_nothing() -> None:
    ledger = Ledger(Clock())
    ledger.closed(ledger.opened([A], 30))
    assert ledger.untold(A) == NONE_UNTOLD


def test_a_node_that_tells_nothing_new_is_believed_in_the_end() -> None:
    clock = Clock()
    ledger, told = Ledger(clock), record("a", seq=5)
    ledger.heard(told)
    ledger.opened([A], 30)
    clock.now_s += FORGET_S
    ledger.heard(told)
    assert ledger.untold(A) == NONE_UNTOLD


def test_a_refusal_counts_until_the_node_tells_anew() -> None:
    clock = Clock()
    ledger, told = Ledger(clock), record("a", seq=5)
    ledger.heard(told)
    ledger.refused(A, 90)
    ledger.refused(A, 30)
    assert ledger.untold(A) == Untold(0, 0, 30)
    ledger.heard(replace(told, seq=6))
    assert ledger.untold(A) == Untold(0, 0, 30), "that record was on its way already"
    clock.now_s += SETTLE_S
    ledger.heard(replace(told, seq=7))
    assert ledger.untold(A) == NONE_UNTOLD


def test_nodes_that_are_gone_are_forgotten() -> None:
    ledger, told = Ledger(Clock()), record("a", seq=5)
    ledger.heard(told)
    entry = ledger.opened([A], 30)
    ledger.keep_only({})
    assert ledger.untold(A) == NONE_UNTOLD
    ledger.closed(entry)  # its requests end after it is gone
    ledger.keep_only({})
    assert ledger.untold(A) == NONE_UNTOLD
