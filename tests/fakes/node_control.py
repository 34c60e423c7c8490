"""A node as the HTTP service sees it: the real proposals over made-up records, no swarm behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from node.errors import PlanChanged
from node.models import ChatModel
from node.plan.live.propose import Proposal, propose
from node.wire.plans import Plan, PlanSettings
from node.wire.records import NodeRecord


@dataclass
class FakeNodeControl:
    """`before_apply` is called before each change, as another member's change might come just then."""

    in_force: Plan | None
    members: Sequence[NodeRecord]
    before_apply: Callable[[FakeNodeControl], None] = field(default=lambda control: None)

    def plan(self) -> Plan | None:
        return self.in_force

    def chat_model(self) -> ChatModel | None:
        return None

    def records(self) -> Iterable[NodeRecord]:
        return self.members

    def invitation(self) -> str:
        return "a token"

    def models_folder(self) -> Path:
        return Path("/nowhere")

    def names(self) -> dict[str, str]:
        return {"12D3KooWseen0000before01": "garage"}

    @property
    def leaving(self) -> bool:
        return False

    def waiting_for(self) -> str:
        return "no plan yet: the nodes measure themselves; try again in a moment"

    async def propose(self, settings: PlanSettings | None = None) -> Proposal:
        plan = self.in_force
        assert plan is not None
        members = {record.id: record for record in self.members}
        author = min(members)
        wanted = settings or plan.settings
        return await trio.to_thread.run_sync(
            propose, author, members, plan.model, plan.dtype, plan.facts, plan, wanted
        )  # as the real one does: a plan takes longer than the loop may be held

    async def apply(self, settings: PlanSettings | None = None, epoch: int | None = None) -> Proposal:
        self.before_apply(self)
        assert self.in_force is not None
        if epoch is not None and epoch != self.in_force.epoch:
            raise PlanChanged(epoch, self.in_force.epoch)
        before, proposal = self.in_force, await self.propose(settings)
        await trio.lowlevel.checkpoint()  # others may come in between, as while a real one is worked out
        if self.in_force is not before:
            raise PlanChanged(before.epoch, self.in_force.epoch)
        self.in_force = proposal.plan
        return proposal
