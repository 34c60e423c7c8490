"""The live router keeps up with what members say of their links."""

from __future__ import annotations

from msgspec.structs import replace

from node.pipeline.ledger import Ledger
from node.pipeline.live_router import LiveRouter
from node.plan.routing.hosts import Request
from node.wire.ids import NodeId
from tests.node.plan.live.test_decide import records
from tests.node.plan.routing.test_hosts import PLAN, holding

HEAD = NodeId("a")


def test_a_link_that_a_member_tells_to_be_lost_is_not_used_by_the_next_request() -> None:
    router = LiveRouter(HEAD, Ledger(lambda: 0.0), lambda: 0.0)
    first = holding("a", (0, 3, "ready"), rtt_ms={"b": 1.0, "c": 5.0})
    near = holding("b", (3, 6, "ready"), rtt_ms={"a": 1.0, "c": 5.0})
    far = holding("c", (3, 6, "ready"), rtt_ms={"a": 5.0, "b": 5.0})

    def chosen() -> tuple[str, ...]:
        found = router.route(Request(), patient=False)
        assert found is not None
        return found.nodes

    router.look(PLAN, records(first, near, far))
    assert chosen() == ("a", "b")
    lost = replace(first, seq=2, rtt_ms={"c": 5.0}, unreachable=("b",))
    router.look(PLAN, records(lost, near, far))
    assert chosen() == ("a", "c")
    router.look(PLAN, records(replace(first, seq=3), near, far))
    assert chosen() == ("a", "b")
