"""The planner's turn: watches the members, and publishes a plan when this node is the one to do so.

Decisions are `node.plan.decide`; here are only the clocks: when to wait for members that may still come or return.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from node.errors import ParallaxError
from node.live.desk import Metadata
from node.plan.decide import Problem, decide, planner_of
from node.swarm.base import MemberGone, Swarm
from node.wire.events import Event, PlanImpossible
from node.wire.ids import NodeId
from node.wire.models import Dtype, ModelRef
from node.wire.plans import Plan
from node.wire.records import NodeRecord

log = logging.getLogger(__name__)

RETURN_GRACE_S = 60.0
"""A member that vanished without a goodbye keeps its layers this long: a crash and restart moves nobody's layers."""

GATHER_S = 10.0
"""A first plan waits at most this long for members that are still measuring themselves."""

REUNION_S = 4.0
"""A node that knows peers from before gives them this long to answer before it plans without them."""

EPOCH_LEAP = 1_000_000
"""A plan so far ahead is none that planning has led to, and would leave no room for another after it."""

SETTLE_S = 0.5
"""Members that come or go together lead to one plan."""


class Planner:
    """Decides when a plan is due. `plan` is the one in force; `adopt` makes it so."""

    def __init__(
        self,
        swarm: Swarm,
        metadata: Callable[[ModelRef], Awaitable[Metadata]],
        adopt: Callable[[Plan], None],
        emit: Callable[[Event], object],
        *,
        min_nodes: int,
        knows_peers: bool,
        joins: bool,
        last_epoch: int,
    ) -> None:
        self.plan: Plan | None = None
        self._swarm, self._metadata, self._adopt, self._emit = swarm, metadata, adopt, emit
        self._min_nodes, self._joins, self._last_epoch = min_nodes, joins, last_epoch
        self._not_before_s = trio.current_time() + (REUNION_S if knows_peers else 0.0)
        self._gather_until_s = trio.current_time() + GATHER_S
        self._expected_until_s: dict[NodeId, float] = {}
        self.waiting = ""
        """What the first plan waits for, in words; empty where it waits for nothing that is known here."""
        self._problem = ""
        self._changed = trio.Event()

    def heard(self, plan: Plan) -> bool:
        """Judge a plan; adopt it when it outranks ours. True if it was adopted."""
        if not plan.outranks(self.plan):
            return False
        if plan.epoch > self._last_epoch + EPOCH_LEAP:
            log.warning("ignored a plan with epoch %d: ours is %d", plan.epoch, self._last_epoch)
            return False
        self.plan = plan
        self._last_epoch = max(self._last_epoch, plan.epoch)
        self._say("")
        self._adopt(plan)
        self.wake()
        return True

    def member_gone(self, gone: MemberGone) -> None:
        """Remember who may return."""
        holds_layers = self.plan is not None and self.plan.range_of(gone.node_id) is not None
        if gone.why != "left" and holds_layers:
            self._expected_until_s[gone.node_id] = trio.current_time() + RETURN_GRACE_S
        else:
            self._expected_until_s.pop(gone.node_id, None)
        self.wake()

    def wake(self) -> None:
        """Something changed that may call for a plan."""
        self._changed.set()

    async def run(self) -> None:
        """Plan until cancelled."""
        while True:
            with trio.move_on_after(1.0):
                await self._changed.wait()
                await trio.sleep(SETTLE_S)
            self._changed = trio.Event()
            try:
                await self._plan_if_due()
            except (ParallaxError, OSError) as error:
                self._say(str(error))
                await trio.sleep(5.0)

    async def _plan_if_due(self) -> None:
        records = self._swarm.members()
        self.waiting = self._waiting_for(records)
        if planner_of(records) != self._swarm.node_id or self.waiting:
            return
        wanted = self._wanted(records)
        if wanted is None:
            return
        model, dtypes = wanted
        metadata = await self._metadata(model)
        outcome: Plan | Problem | None = None
        for dtype in dtypes:
            outcome = decide(
                self._swarm.node_id,
                self._swarm.members(),
                model,
                dtype,
                metadata.facts(dtype),
                self.plan,
                frozenset(self._expected()),
                self._last_epoch,
            )
            if not isinstance(outcome, Problem):
                break
        if isinstance(outcome, Problem):
            self._say(outcome.reason)
        elif outcome is not None and self.heard(outcome):
            log.info("plan %d: %s", outcome.epoch, _in_words(outcome, self._swarm.members()))
            await self._swarm.publish_plan(outcome)

    def _waiting_for(self, records: dict[NodeId, NodeRecord]) -> str:
        if self.plan is not None:
            return ""
        if self._joins and len(records) == 1:
            return "none of the swarm's members has been reached yet"  # it has a model, so we plan nothing of our own
        now_s = trio.current_time()
        measured = sum(record.hardware is not None for record in records.values())
        if measured < self._min_nodes:
            return f"{measured} of at least {self._min_nodes} nodes are here and measured"
        if now_s < self._not_before_s:
            return "members from before may still answer"
        if measured < len(records) and now_s < self._gather_until_s:
            return f"{measured} of {len(records)} nodes have measured themselves"
        return ""

    def _wanted(self, records: dict[NodeId, NodeRecord]) -> tuple[ModelRef, tuple[Dtype, ...]] | None:
        """The swarm's model and the dtypes to try, best first."""
        if self.plan is not None:
            return self.plan.model, (self.plan.dtype,)
        record = min((r for r in records.values() if r.wanted_model is not None), key=lambda r: r.id, default=None)
        if record is None or record.wanted_model is None:
            return None
        if record.wanted_dtype is not None:
            return record.wanted_model, (record.wanted_dtype,)
        on_cpu = all(r.hardware is None or r.hardware.device == "cpu" for r in records.values())
        return record.wanted_model, (("float32", "bfloat16") if on_cpu else ("bfloat16",))

    def _expected(self) -> set[NodeId]:
        """Members that vanished or are just returning, within their grace."""
        now_s = trio.current_time()
        records = self._swarm.members()
        for node, until_s in list(self._expected_until_s.items()):
            record = records.get(node)
            if now_s >= until_s or (record is not None and record.hardware is not None):
                del self._expected_until_s[node]
        return set(self._expected_until_s)

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._emit(PlanImpossible(problem))
            if problem:
                log.warning("no plan: %s", problem)


def _in_words(plan: Plan, records: dict[NodeId, NodeRecord]) -> str:
    names = {node: record.name for node, record in records.items()}
    return ", ".join(f"{names.get(a.id, a.id[-8:])} [{a.start}, {a.end})" for a in plan.assignments)
