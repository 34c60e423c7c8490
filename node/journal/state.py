"""The state that HTTP, the TUI and replay all show. A value: `apply` makes the next one, nothing changes it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from node.wire.events import HopLatency, ModelProgress, Notice
from node.wire.frames import Hop
from node.wire.ids import NodeId, RequestId
from node.wire.plans import Plan
from node.wire.records import NodeRecord

KEPT_REQUESTS = 50
"""Older requests are in the journal only; a screen shows fewer."""

KEPT_NOTICES = 50

KEPT_AVOIDED = 50


class NodeView(Struct, frozen=True):
    """A live member."""

    record: NodeRecord
    seen_s: float
    """Unix time at which this view last changed, by the clock of the node that tells it."""


class RequestView(Struct, frozen=True):
    """One request that this node is, or was, head of."""

    request_id: RequestId
    started_s: float
    prompt_tokens: int
    chain: tuple[Hop, ...]
    tokens: int = 0
    hops: tuple[HopLatency, ...] = ()
    return_ms: float = 0.0
    status: Literal["running", "stop", "length", "cancelled", "failed"] = "running"
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    error: str = ""
    waits_for: str = ""
    """What a request that has no chain waits for; empty while it has one."""


class AvoidedNode(Struct, frozen=True):
    """A node that this one keeps away from, as a head."""

    node_id: NodeId
    name: str
    reason: str
    until_s: float
    """Unix time."""


class ModelStatus(Struct, frozen=True):
    """How far this node is with its model."""

    model: str
    phase: Literal["none", "fetch", "convert", "load", "ready", "failed"] = "none"
    done_bytes: int = 0
    total_bytes: int = 0
    text: str = ""

    @classmethod
    def of(cls, progress: ModelProgress) -> ModelStatus:
        return cls(progress.model, progress.phase, progress.done_bytes, progress.total_bytes, progress.text)


class State(Struct, frozen=True):
    """Everything a screen needs, at event `seq`."""

    self_id: NodeId
    seq: int = 0
    nodes: dict[NodeId, NodeView] = {}
    plan: Plan | None = None
    plan_problem: str = ""
    model: ModelStatus = ModelStatus("")
    avoided: tuple[AvoidedNode, ...] = ()
    """The newest last; of each node the newest only. Those whose time has passed leave with the next one."""
    requests: tuple[RequestView, ...] = ()
    """Oldest first."""
    notices: tuple[Notice, ...] = ()

    def name_of(self, node_id: NodeId) -> str:
        """The node's name; of one that is away and that something is set for by hand, the name that it had then; or the
        end of its id."""
        view = self.nodes.get(node_id)
        if view is not None:
            return view.record.name
        overrides = self.plan.settings.overrides if self.plan is not None else ()
        known = next((each.name for each in overrides if each.node_id == node_id and each.name), "")
        return f"{known} (away)" if known else node_id[-8:]

    def uncovered(self) -> tuple[tuple[int, int], ...]:
        """Layer ranges of the plan that no live member serves, in order; empty when the model is whole."""
        if self.plan is None:
            return ()
        layers, binding = self.plan.facts.layers, self.plan.settings.binding
        excluded = {node_id for node_id, override in binding.items() if override.duty == "exclude"}
        ready = sorted(
            (held.start, held.end)
            for view in self.nodes.values()
            for held in view.record.held
            if held.state in ("ready", "draining")
            and held.weights == self.plan.weights
            and held.end <= layers
            and view.record.node_id not in excluded
        )
        gaps: list[tuple[int, int]] = []
        reached = 0
        for start, end in [*ready, (layers, layers)]:
            if start > reached:
                gaps.append((reached, start))
            reached = max(reached, end)
        return tuple(gaps)
