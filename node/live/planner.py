"""The planner's turn: watches the members, and publishes a plan when this node is the one to do so.

Decisions are `node.plan.live.decide`; here are only the clocks: when to wait for members that may still come or return.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import trio
from msgspec.structs import replace

from node.errors import NoRoute, ParallaxError, PlanChanged, PlanError
from node.live.judging import Look, all_have_failed, asked_for, difference, doubt, nobody_for, serves
from node.live.model_store import Metadata
from node.plan.live.decide import Problem, decide, return_grace_s
from node.plan.live.members import eligible, planner_of
from node.plan.live.propose import Proposal, on_one_machine, propose
from node.swarm.base import MemberGone, Swarm
from node.wire.events import Event, Notice, PlanImpossible
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.models import Dtype, ModelRef
from node.wire.plans import SENTENCE_LIMIT, Plan, PlanSettings
from node.wire.records import NodeRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

GATHER_S = 10.0
"""A first plan waits at most this long for members that are still measuring themselves."""

SET_ASIDE_S = 20.0
"""A swarm that starts again waits so long for members without whom it cannot keep what people have set by hand."""

REUNION_S = 4.0
"""A node that knows peers from before gives them this long to answer before it plans without them."""

SETTLE_S = 0.5
"""Members that come or go together lead to one plan."""

REVIEW_S, REVIEW_MOST_S = 15.0, 900.0
"""While nobody comes or goes, the plan is weighed against what the nodes measure this often; after each plan that came
of it half as often, until somebody comes or goes."""

ONE_MACHINE_S, ONE_MACHINE_MOST_S = 120.0, 1800.0
"""An objective that is left to us is to share again when all members have run on one machine for so long; for twice as
long after each time."""

REVIEWS_AGREED = 3
"""Reviews in a row that must find a better plan: what nodes measure is noisy, and moves make it more so."""

UNSETTLED_S = 120.0
"""A member that goes on loading, or follows no plan, puts a review off for no longer than this."""

RETRY_S = 15.0
"""A member that cannot plan, for it cannot get the model's config, lets others do it for so long."""

DOUBT_S, STAGGER_S = 5.0, 1.0
"""A plan that would end the service is given so long to prove better, for records may lag behind it; then one member
after the other, by their ids, may outrank it."""

LOOK_S = 120.0
"""For what describes the model that a plan changes to: some megabytes from the hub."""

LOOK_AGAIN_S = 60.0
"""What could not be had is looked for again after so long, if a plan still asks for it: the hub may be back."""

UNSERVED_S = 20.0
"""A plan that nobody can serve, and that has never been served, is given up after so long."""

ASIDE_S = 600.0
"""Plans of an author whose plan would have ended the service, or has, are not followed for so long."""

CONFIRM_S, CONFIRM_LOOKS = 0.5, 10
"""A change by hand is done when all members follow it, or after so many looks, if nobody's plan has outranked it."""


LOOKS_KEPT = 16


class InThread(Protocol):
    """Calls a function beside the event loop: a plan takes a tenth of a second or two of a processor, however few the
    nodes are."""

    async def __call__(self, function: Callable[..., T], /, *arguments: Any) -> T: ...


@dataclass(frozen=True, slots=True)
class _PutOff:
    """A plan that outranks the one in force and is not followed yet."""

    plan: Plan
    due_s: float
    """When this member outranks it."""


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
        settings: PlanSettings | None = None,
        in_thread: InThread = trio.to_thread.run_sync,
    ) -> None:
        """`in_thread` works something out while the event loop goes on; a test's stops its clock meanwhile."""
        self.plan: Plan | None = None
        self._in_thread = in_thread
        self._put_off: _PutOff | None = None
        self._aside_until_s: dict[NodeId, float] = {}
        self._looks: dict[tuple[ModelRef, Dtype], Look] = {}
        self._looking: set[tuple[ModelRef, Dtype]] = set()
        self._look_again_at_s: dict[tuple[ModelRef, Dtype], float] = {}
        """Of those that found nothing."""
        self._to_outrank: Plan | None = None
        self._served, self._hopeless_since_s = False, float("inf")
        self._aside_note = ""
        self._swarm, self._metadata, self._adopt, self._emit = swarm, metadata, adopt, emit
        self._min_nodes, self._joins, self._last_epoch = min_nodes, joins, last_epoch
        self._first_settings = settings or PlanSettings()
        self._weighed: tuple[object, ...] = ()
        self._one_machine_since_s, self._one_machine_s = float("inf"), ONE_MACHINE_S
        self._review_s, self._review_at_s, self._agreed = REVIEW_S, 0.0, 0
        self._unable_until_s = float("-inf")
        self._not_before_s = trio.current_time() + (REUNION_S if knows_peers else 0.0)
        self._gather_until_s = trio.current_time() + GATHER_S
        self._set_aside_at_s = trio.current_time() + SET_ASIDE_S
        self._expected_until_s: dict[NodeId, float] = {}
        self.waiting = ""
        """What the first plan waits for, in words; empty where it waits for nothing that is known here."""
        self._problem = ""
        self._changed = trio.Event()

    @property
    def settings(self) -> PlanSettings:
        """What people want of the swarm."""
        return self.plan.settings if self.plan is not None else self._first_settings

    async def propose(self, settings: PlanSettings | None = None) -> Proposal:
        """The plan that would follow from `settings`, or from things as they are. Changes nothing.

        Raises:
            NoRoute: there is no plan yet that could be changed, or nobody can hold layers of members who are gone.
            PlanError: such a plan cannot be; says why.
        """
        plan = self.plan
        if plan is None:
            raise NoRoute(f"no plan yet: {self.waiting or 'the nodes measure themselves'}; try again in a moment")
        wanted = settings if settings is not None else plan.settings
        return await self._proposed(plan, wanted)

    async def _proposed(self, plan: Plan, wanted: PlanSettings, *, lenient: bool = False) -> Proposal:
        return await self._in_thread(
            partial(propose, lenient=lenient),
            self._swarm.node_id,
            self._swarm.members(),
            plan.model,
            plan.dtype,
            plan.facts,
            plan,
            wanted,
            self._last_epoch,
        )

    async def apply(self, settings: PlanSettings | None = None, epoch: int | None = None) -> Proposal:
        """Publish the plan that follows from `settings`. Any member may; who plans next goes on from there.

        Raises:
            PlanChanged: `epoch` is not that of the plan in force, or another plan outranks the new one.
            NoRoute, PlanError: as `propose`.
        """
        before = self.plan
        if epoch is not None and before is not None and before.epoch != epoch:
            raise PlanChanged(epoch, before.epoch)
        proposal = await self.propose(settings)
        if not proposal.changes:
            return proposal
        if self.plan is not before or not self.heard(proposal.plan):
            raise PlanChanged(proposal.plan.epoch - 1, self._last_epoch)
        if not await self._swarm.publish_plan(proposal.plan):
            raise PlanChanged(proposal.plan.epoch - 1, self._last_epoch)
        for _ in range(CONFIRM_LOOKS):
            await trio.sleep(CONFIRM_S)
            if all(r.plan_epoch >= proposal.plan.epoch for r in eligible(self._swarm.members()).values()):
                break
        if self.settings != proposal.plan.settings:
            raise PlanChanged(proposal.plan.epoch - 1, self._last_epoch)
        return proposal

    def heard(self, plan: Plan) -> bool:
        """Judge a plan; adopt it when it outranks ours and would not end the service. True if it was adopted."""
        if NodeId(plan.author) in self._aside() or not plan.may_follow(self.plan, time.time()):
            return False
        if plan.author != self._swarm.node_id and (why := self._doubt(plan)):
            self._wait_for_better(plan, why)
            return False
        self._follow(plan)
        return True

    def _wait_for_better(self, plan: Plan, why: str) -> None:
        """Look at it again until its time is up; an author who goes on publishing gains no time by it."""
        before = self._put_off
        if before is not None and not plan.outranks(before.plan):
            return
        if before is not None and before.plan.author == plan.author:
            self._put_off = _PutOff(plan, before.due_s)
            return
        log.warning("plan %d by %s is not followed yet: %s", plan.epoch, self._name_of(plan.author), why)
        self._put_off = _PutOff(plan, trio.current_time() + DOUBT_S + STAGGER_S * self._rank())
        self.wake()

    def _follow(self, plan: Plan) -> None:
        if self.plan is None:
            self._served = False
        elif (self.plan.objective, plan.objective) == ("balanced", "share") and plan.settings.objective == "auto":
            self._one_machine_s = min(ONE_MACHINE_MOST_S, 2 * self._one_machine_s)
        self.plan = plan
        self._hopeless_since_s = float("inf")
        self._last_epoch = max(self._last_epoch, plan.epoch)
        self._unable_until_s = float("-inf")
        self._say("")
        log.info("plan %d: %s", plan.epoch, _in_words(plan, self._swarm.members()))
        self._adopt(plan)
        self.wake()

    def member_gone(self, gone: MemberGone) -> None:
        """Remember who may return."""
        grace_s = return_grace_s(self.plan, gone.node_id) if self.plan is not None else 0.0
        if gone.why != "left" and grace_s > 0:
            self._expected_until_s[gone.node_id] = trio.current_time() + grace_s
        else:
            self._expected_until_s.pop(gone.node_id, None)
        self.wake()

    def wake(self) -> None:
        """Something changed that may call for a plan."""
        self._changed.set()

    async def run(self) -> None:
        """Plan until cancelled."""
        async with trio.open_nursery() as nursery:
            await self._watch(nursery)

    async def _watch(self, nursery: trio.Nursery) -> None:
        while True:
            with trio.move_on_after(1.0):
                await self._changed.wait()
                await trio.sleep(SETTLE_S)
            self._changed = trio.Event()
            try:
                self._look_at_models(nursery)
                await self._judge_plan_in_force()
                await self._judge_what_was_put_off()
                await self._go_on()
                await self._plan_if_due()
            except (ParallaxError, OSError) as error:
                await self._tell_unable(str(error))
            except Exception as error:  # whatever a record says, the node goes on, and so does planning
                log.exception("planning failed")
                await self._tell_unable(f"planning failed: {type(error).__name__}: {error}; the log has the details")

    async def _plan_if_due(self) -> None:
        if self._unable_until_s > float("-inf") and trio.current_time() >= self._unable_until_s:
            self._unable_until_s = float("-inf")
            await self._swarm.update(state="starting", problem="")
        records = self._swarm.members()
        self.waiting = self._waiting_for(records)
        if not on_one_machine(records):
            self._one_machine_since_s = float("inf")
        elif self._one_machine_since_s == float("inf"):
            self._one_machine_since_s = trio.current_time()
        if planner_of(records, first=self.plan is None, aside=self._aside()) != self._swarm.node_id:
            self._say("")  # another one sees to it now
            return
        if self.waiting:
            return
        wanted = self._wanted(records)
        due = self._due(records) if wanted is not None else ""
        if wanted is None or not due:
            return
        current, outcome = self.plan, await self._decided(*wanted)
        planner = planner_of(self._swarm.members(), first=current is None, aside=self._aside())
        if self.plan is not current or planner != self._swarm.node_id:
            self._weighed = ()  # it took a while, and is of yesterday
            self.wake()
        elif isinstance(outcome, Problem):
            self._agreed = 0  # reviews that agree are reviews in a row
            self._say(f"{outcome.reason}{self._set_aside_soon()}")
        elif outcome is None:
            self._agreed = 0
            self._say("")
        elif self._is_agreed(due):
            outcome = self._with_note(outcome)
            if not self.heard(outcome):  # its number is ahead of the clock: the next look finds it due again
                log.warning("the plan of epoch %d must wait until the clock has come so far", outcome.epoch)
                self._weighed = ()
                return
            self._aside_note = ""
            self._weighed = (outcome, *self._weighed[1:])  # our own plan is no change to weigh
            self._tell_what_is_set_aside(outcome.settings, current)
            await self._swarm.publish_plan(outcome)

    async def _decided(self, model: ModelRef, dtypes: tuple[Dtype, ...]) -> Plan | Problem | None:
        """The decision for the first of `dtypes` that fits. A plan in force tells all that is needed of its model."""
        facts = [self.plan.facts] if self.plan is not None else [(await self._metadata(model)).facts(d) for d in dtypes]
        outcome: Plan | Problem | None = None
        settled = trio.current_time() >= self._one_machine_since_s + self._one_machine_s
        for settings in self._settings_to_try():
            for dtype, sizes in zip(dtypes, facts, strict=True):
                outcome = await self._in_thread(
                    partial(decide, settled=settled),
                    self._swarm.node_id,
                    self._swarm.members(),
                    model,
                    dtype,
                    sizes,
                    self.plan,
                    settings,
                    self._expected(),
                    self._last_epoch,
                    self._aside(),
                )
                if not isinstance(outcome, Problem):
                    return outcome
        return outcome

    def _settings_to_try(self) -> tuple[PlanSettings, ...]:
        """What is set by hand, all of it. Where no plan is possible with it, then as it binds now, with some set aside.

        A swarm that started again and has no plan yet sets aside what a former run has left it, once it has waited for
        members that are missing: better an answer than none. It binds again as soon as it can.
        """
        wanted = self.settings.all_set_aside(False)
        if self._may_set_aside():
            return tuple(dict.fromkeys((wanted, self.settings.all_set_aside(True))))
        return tuple(dict.fromkeys((wanted, self.settings))) if self.plan is not None else (wanted,)

    def _may_set_aside(self) -> bool:
        return self.plan is None and trio.current_time() >= self._set_aside_at_s

    def _set_aside_soon(self) -> str:
        if self.plan is not None or not self.settings.overrides or self._may_set_aside():
            return ""
        return (
            f"; members who are away are waited for, {SET_ASIDE_S:.0f} s at most, then the swarm serves without what "
            "was set by hand"
        )

    def _due(self, records: dict[NodeId, NodeRecord]) -> Literal["", "change", "review"]:
        """Whether anything has changed that a plan depends on, or it is time to look at what nodes measure."""
        fixed = (_fixed_in(record) for _, record in sorted(records.items()))
        weighed = (self.plan, self._may_set_aside(), tuple(sorted(self._expected())), *fixed)
        now_s = trio.current_time()
        if weighed != self._weighed:
            if self._weighed[1:] != weighed[1:]:
                self._review_s = REVIEW_S
            self._weighed, self._review_at_s, self._agreed = weighed, now_s + self._review_s, 0
            return "change"
        settled = self.plan is not None and all(
            record.plan_epoch >= self.plan.epoch and all(held.state != "loading" for held in record.held)
            for record in eligible(records).values()
        )
        if now_s < self._review_at_s + (0.0 if settled else UNSETTLED_S):
            return ""
        self._review_at_s = now_s + self._review_s
        return "review"

    def _is_agreed(self, due: Literal["", "change", "review"]) -> bool:
        """Whether a plan that was found is to be followed: after a change at once, else when it is found repeatedly."""
        if due == "change" or self.plan is None:
            return True
        self._agreed += 1
        if self._agreed < REVIEWS_AGREED:
            return False
        self._review_s = min(REVIEW_MOST_S, 2 * self._review_s)
        return True

    def _tell_what_is_set_aside(self, settings: PlanSettings, before: Plan | None) -> None:
        aside = [each.name or each.node_id[-8:] for each in settings.overrides if each.set_aside]
        if aside and before is None:
            names = ", ".join(aside)
            text = f"what was set by hand for {names} is set aside until members are here who make it possible"
            log.warning(text)
            self._emit(Notice.of("warning", text))

    async def _tell_unable(self, problem: str) -> None:
        """Say why this member cannot plan. Without a plan, let others do it for a while: it may be only us."""
        self._weighed = ()
        self._say(problem)
        if self.plan is None and len(self._swarm.members()) > 1:
            self._unable_until_s = trio.current_time() + RETRY_S
            await self._swarm.update(state="failed", problem=problem[:500])
        with trio.move_on_after(5.0):
            await self._changed.wait()

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
        aside = self._aside()
        wanting = [r for node, r in records.items() if r.wanted_model is not None and node not in aside]
        record = min(wanting, key=lambda r: (-r.plan_epoch, r.id), default=None)
        if record is None or record.wanted_model is None:
            return None
        if record.wanted_dtype is not None:
            return record.wanted_model, (record.wanted_dtype,)
        on_cpu = all(r.hardware is None or r.hardware.device == "cpu" for r in records.values())
        return record.wanted_model, (("float32", "bfloat16") if on_cpu else ("bfloat16",))

    def _doubt(self, plan: Plan) -> str:
        return doubt(plan, self.plan, self._swarm.members(), self._looks.get((plan.model, plan.dtype)))

    def _rank(self) -> int:
        """How many members go before this one."""
        aside = self._aside()
        return sum(node < self._swarm.node_id and node not in aside for node in eligible(self._swarm.members()))

    def _aside(self) -> frozenset[NodeId]:
        """Authors whose plans are not followed now."""
        now_s = trio.current_time()
        for author in [author for author, until_s in self._aside_until_s.items() if now_s >= until_s]:
            del self._aside_until_s[author]
            self._swarm.set_aside(author, aside=False)
        return frozenset(self._aside_until_s)

    def _set_aside(self, plan: Plan, why: str) -> None:
        """Follow no plan of this author for a while, and say why."""
        author = NodeId(plan.author)
        self._aside_until_s[author] = trio.current_time() + ASIDE_S
        self._swarm.set_aside(author, aside=True)
        self._last_epoch = max(self._last_epoch, plan.epoch)
        self._weighed = ()
        self._aside_note = f"plan {plan.epoch} by {self._name_of(author)} was set aside: {why}"
        text = f"{self._aside_note}; its author's plans are not followed for {ASIDE_S / 60:.0f} minutes"
        log.warning(text)
        self._emit(Notice.of("warning", text))

    def _with_note(self, plan: Plan) -> Plan:
        """Our next plan that is followed tells everybody's status what the one before it was set aside for."""
        note = self._aside_note
        return replace(plan, note=f"{note}; {plan.note}".removesuffix("; ")[:SENTENCE_LIMIT]) if note else plan

    def _name_of(self, node_id: str) -> str:
        record = self._swarm.members().get(NodeId(node_id))
        return record.name if record is not None else node_id[-8:]

    def _look_at_models(self, nursery: trio.Nursery) -> None:
        """Have what describes the models of others' plans read, beside all else: it may have to be fetched."""
        plans = [self.plan] if self._put_off is None else [self.plan, self._put_off.plan]
        for plan in plans:
            if plan is None:
                continue
            key = plan.model, plan.dtype
            asked = plan is self.plan or asked_for(plan.model, self._swarm.members(), self._aside())
            known = key in self._looks and trio.current_time() < self._look_again_at_s.get(key, float("inf"))
            if asked and not known and key not in self._looking:
                self._looking.add(key)
                nursery.start_soon(self._look_at, *key)

    async def _look_at(self, model: ModelRef, dtype: Dtype) -> None:
        look = Look(problem=f"it was not here within {LOOK_S:.0f} s")
        try:
            with trio.move_on_after(LOOK_S):
                look = Look((await self._metadata(model)).facts(dtype))
        except (ParallaxError, OSError) as error:
            look = Look(problem=str(error))
        except Exception as error:  # whatever a file or a plan says, planning goes on
            log.exception("looking at %s failed", model.name)
            look = Look(problem=f"{type(error).__name__}: {error}")
        key = model, dtype
        self._looking.discard(key)
        self._looks.pop(key, None)
        self._look_again_at_s.pop(key, None)
        while len(self._looks) >= LOOKS_KEPT:
            oldest = next(iter(self._looks))
            del self._looks[oldest]
            self._look_again_at_s.pop(oldest, None)
        self._looks[key] = look
        if look.facts is None:
            self._look_again_at_s[key] = trio.current_time() + LOOK_AGAIN_S
        self.wake()

    async def _judge_plan_in_force(self) -> None:
        """Give up a plan of somebody else's that has never been served and cannot be.

        If this member failed at it, that counts no more: it may hold and plan something else.
        """
        plan, records, now_s = self.plan, self._swarm.members(), trio.current_time()
        if plan is None or self._served:
            return
        if serves(plan, records):
            self._served = True
            return
        if plan.author == self._swarm.node_id:
            return
        look = self._looks.get((plan.model, plan.dtype))
        wrong = difference(plan, look.facts) if look is not None and look.facts is not None else ""
        why = wrong or self._hopeless(plan, records, look)
        self._hopeless_since_s = min(self._hopeless_since_s, now_s) if why else float("inf")
        if wrong or now_s >= self._hopeless_since_s + UNSERVED_S:
            self.plan = None
            self._set_aside(plan, why)
            if records[self._swarm.node_id].state == "failed":
                await self._swarm.update(state="starting", problem="")

    def _hopeless(self, plan: Plan, records: dict[NodeId, NodeRecord], look: Look | None) -> str:
        measured = {node: record for node, record in records.items() if record.hardware is not None}
        if (gap := nobody_for(plan, measured)) is not None:  # one that failed may yet succeed
            return f"it leaves layers {layer_range(*gap)} to nobody"
        others = {node: record for node, record in records.items() if node != plan.author}
        wanted = {record.wanted_model for record in others.values()} - {None, plan.model}
        if look is not None and look.facts is None and wanted and all_have_failed(plan, records):
            return f"its model {plan.model.name} cannot be had ({look.problem})"
        return ""

    async def _judge_what_was_put_off(self) -> None:
        """Follow it once nothing speaks against it, or outrank it when its time is up."""
        put_off, now_s = self._put_off, trio.current_time()
        if put_off is None:
            return
        plan, current = put_off.plan, self.plan
        why = self._doubt(plan)
        if not plan.may_follow(current, time.time()) or NodeId(plan.author) in self._aside():
            self._put_off = None  # another member was faster
            if why and now_s >= put_off.due_s - STAGGER_S * self._rank():
                self._set_aside(plan, why)
                self._aside_note = ""  # the plan in force says it
        elif not why:
            self._put_off = None
            self._follow(plan)
        elif now_s >= put_off.due_s and (plan.model, plan.dtype) not in self._looking:
            self._put_off = None
            self._set_aside(plan, why)
            self._to_outrank = plan

    async def _go_on(self) -> None:
        """Publish a plan that outranks the one just set aside: the one in force, made anew for who is here."""
        current, bad = self.plan, self._to_outrank
        if bad is None or current is None or current.outranks(bad):
            self._to_outrank = None
            return
        try:
            proposal = await self._proposed(current, current.settings, lenient=True)
            following = proposal.plan
        except PlanError:
            following = current
        if self.plan is not current:
            return
        following = replace(following, epoch=self._last_epoch + 1, author=self._swarm.node_id)
        if not following.may_follow(current, time.time()):
            return  # its number is ahead of the clock: the next look is a second later
        self._to_outrank = None
        if self.heard(following := self._with_note(following)):
            self._aside_note = ""
            await self._swarm.publish_plan(following)

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


def _fixed_in(record: NodeRecord) -> tuple[object, ...]:
    """What a plan depends on and only changes for a reason."""
    return (
        record.node_id,
        record.hardware,
        record.machine_id,
        record.region,
        record.pinned_layers,
        record.memory_cap_bytes,
        record.state == "failed",
        record.leaving,
    )


def _in_words(plan: Plan, records: dict[NodeId, NodeRecord]) -> str:
    names = {node: record.name for node, record in records.items()}
    return ", ".join(f"{names.get(a.id, a.id[-8:])} {layer_range(a.start, a.end)}" for a in plan.assignments)
