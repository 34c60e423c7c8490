"""Plans of an author that was set aside are neither taken nor passed on nor kept, until it is taken back."""

from __future__ import annotations

from collections.abc import Callable

from node.swarm.base import PlanHeard
from node.swarm.gossip import Effects, Gossip
from node.swarm.identity import Identity
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Plan
from node.wire.records import NodeRecord
from tests.node.swarm.words import MARK, plan_of, told_by

Make = Callable[..., NodeRecord]
MODEL = ModelRef("model", "default", "0" * 64)
FACTS = ModelFacts(30, 1, 1, 1, 1, 1, 1, 1)
UNIX_S = 1_790_000_000.0


def plan_by(author: Identity, epoch: int) -> Plan:
    return Plan(epoch, author.node_id, MODEL, "float32", FACTS, ())


def hear(gossip: Gossip, author: Identity, epoch: int) -> Effects:
    return gossip.hear(plan_of(author, plan_by(author, epoch)), author.node_id, 0.0, UNIX_S)


def meet(gossip: Gossip, who: Identity, record_of: Make) -> list[object]:
    told = told_by(who, record_of(who.node_id))
    return [news for envelope in told for news in gossip.hear(envelope, who.node_id, 0.0, UNIX_S).news]


def test_an_authors_plans_are_set_aside_and_taken_again(
    ada: Identity, bob: Identity, eve: Identity, record_of: Make
) -> None:
    gossip = Gossip(ada, record_of(ada.node_id, 0), MARK)
    for member in (bob, eve):
        meet(gossip, member, record_of)
    assert hear(gossip, eve, 5).news == [PlanHeard(plan_by(eve, 5))]
    gossip.set_aside(eve.node_id, aside=True)
    assert gossip.plan is None
    later = hear(gossip, eve, 9)
    assert (later.news, later.spread) == ([], False)
    assert hear(gossip, bob, 6).news == [PlanHeard(plan_by(bob, 6))]
    gossip.set_aside(eve.node_id, aside=False)
    assert hear(gossip, eve, 10).news == [PlanHeard(plan_by(eve, 10))]


def test_a_plan_that_waits_for_its_author_is_forgotten_too(ada: Identity, eve: Identity, record_of: Make) -> None:
    gossip = Gossip(ada, record_of(ada.node_id, 0), MARK)
    assert hear(gossip, eve, 5).news == []
    gossip.set_aside(eve.node_id, aside=True)
    assert not any(isinstance(news, PlanHeard) for news in meet(gossip, eve, record_of))
