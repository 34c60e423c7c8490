"""Who holds which layers. Every member follows the valid plan with the highest epoch."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.models import Count, Dtype, ModelFacts, ModelRef
from node.wire.records import NAME_LIMIT, Id, Layer, make_printable

Objective = Literal["share", "latency", "throughput", "balanced"]
"""What a plan aims at: layers for every member in proportion to memory; the fastest answer for one user; the most
tokens per second for all; the geometric mean of both."""

Aim = Literal["auto", Objective]
"""What people may ask for; see `PlanSettings.objective`."""

Duty = Literal["serve", "drain", "exclude"]
"""What a node may do: everything, what only it can do until others have its layers, nothing new."""

MOST_NODES = 4096

EPOCHS_SINCE_S = 1_735_689_600
"""The beginning of 2025. An epoch is at most the number of seconds since then: plans are made one after the other, and
never one a second for years, so even a node that knows nothing yet can tell a number that no planning has led to. And
as time goes on there is always a next one: whoever names the highest number keeps the others from planning for the
second or two in which clocks differ. A leap over the highest number known would be no such bound: a node that is new to
its swarm knows none, and each leap would make room for another."""

BUILT_S = 1_767_225_600
"""The beginning of 2026: a machine whose clock says less has no battery, and judges as if it were then."""

CLOCKS_DIFFER_S = 600
"""A plan is refused only where it is more than so far ahead of our own clock."""

SENTENCE_LIMIT = 400
Sentence = Annotated[str, Meta(max_length=SENTENCE_LIMIT)]


def most_epoch(unix_s: float) -> int:
    """The highest epoch that planning can have led to by then."""
    return int(max(unix_s, BUILT_S)) - EPOCHS_SINCE_S + CLOCKS_DIFFER_S


class Assignment(Struct, frozen=True):
    """Layers [start, end) on one node."""

    node_id: Id
    start: Layer
    end: Layer

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"assignment [{self.start}, {self.end}) is empty")

    @property
    def id(self) -> NodeId:
        return NodeId(self.node_id)


class Override(Struct, frozen=True, omit_defaults=True):
    """What a person has set by hand for one node, from any member."""

    node_id: Id
    layers: tuple[Layer, Layer] | None = None
    """Hold exactly layers [start, end); what its owner set with `--layers` goes before."""
    memory_bytes: Count | None = None
    """At most this much for weights and KV cache; its owner's `--memory` binds too."""
    duty: Duty = "serve"
    """drain: it gives its layers up as soon as others have them ready. exclude: nothing new goes through it from now
    on, even where that leaves layers without a node for a while."""
    name: Annotated[str, Meta(max_length=64)] = ""
    """What the node was called when this was set: it can be named while it is away."""
    set_aside: bool = False
    """It does not bind now: a swarm that started again could not have served with it, for members were missing."""

    def __post_init__(self) -> None:
        make_printable(self, name=NAME_LIMIT)
        if self.layers is not None and self.layers[1] <= self.layers[0]:
            raise ValueError(f"override.layers {self.layers} is empty")


class PlanSettings(Struct, frozen=True):
    """What people want of the swarm. Travels with the plan, so that whoever plans next goes on with it."""

    objective: Aim = "auto"
    """auto: `share` while all members run on one machine, where splitting is for trying things out, else `balanced`."""
    overrides: Annotated[tuple[Override, ...], Meta(max_length=MOST_NODES)] = ()
    """By node id, at most one each. Kept for a member that is away."""

    def __post_init__(self) -> None:
        if len({each.node_id for each in self.overrides}) < len(self.overrides):
            raise ValueError("settings.overrides names a node twice")

    @property
    def binding(self) -> dict[str, Override]:
        """What counts now, by node id."""
        return {each.node_id: each for each in self.overrides if not each.set_aside}

    def of(self, node_id: str) -> Override:
        """What counts for one node."""
        return self.binding.get(node_id, Override(node_id))

    def as_data(self, name_of: Callable[[str], str]) -> dict[str, object]:
        """For JSON, every key there and names beside ids."""
        return {
            "objective": self.objective,
            "overrides": [
                {
                    "node_id": each.node_id,
                    "name": name_of(each.node_id),
                    "layers": list(each.layers) if each.layers is not None else None,
                    "memory_bytes": each.memory_bytes,
                    "duty": each.duty,
                    "set_aside": each.set_aside,
                }
                for each in self.overrides
            ],
        }

    def all_set_aside(self, aside: bool) -> PlanSettings:
        """The same with every override set aside, or with every one binding again."""
        return replace(self, overrides=tuple(replace(each, set_aside=aside) for each in self.overrides))


class Standby(Struct, frozen=True):
    """A member that was counted and holds nothing."""

    node_id: Id
    reason: Sentence = ""
    """Why, for people."""
    barred: bool = False
    """By hand or by a failure, not by the plan's own choice."""

    def __post_init__(self) -> None:
        make_printable(self, reason=SENTENCE_LIMIT)


class Plan(Struct, frozen=True):
    """One allocation of the model's layers, numbered by epoch."""

    epoch: Count
    """Higher wins; equal epochs: the smaller author wins, so that two halves of a healed swarm agree."""
    author: Id
    model: ModelRef
    dtype: Dtype
    facts: ModelFacts
    assignments: Annotated[tuple[Assignment, ...], Meta(max_length=MOST_NODES)]
    """In layer order; replicas are ranges that cover the same layers. Ranges set by hand may leave gaps; then nothing
    is served and status says why."""
    standby: Annotated[tuple[Standby, ...], Meta(max_length=MOST_NODES)] = ()
    """By node id."""
    objective: Objective = "share"
    """What it was made for: `settings.objective`, with `auto` resolved."""
    settings: PlanSettings = PlanSettings()
    note: Sentence = ""
    """What a person should know about the choice."""

    def __post_init__(self) -> None:
        make_printable(self, note=SENTENCE_LIMIT)
        held = [assignment.node_id for assignment in self.assignments]
        if len(set(held)) < len(held):
            raise ValueError("plan.assignments names a node twice")
        beyond = next((a for a in self.assignments if a.end > self.facts.layers), None)
        if beyond is not None:
            raise ValueError(
                f"plan.assignments has {layer_range(beyond.start, beyond.end)} of {self.facts.layers} layers"
            )

    @property
    def weights(self) -> str:
        """Equal for plans whose ranges may be mixed: the same model in the same arithmetic. Sixteen characters, since
        every node tells it of each of its ranges, each second."""
        return _weights(self.model.digest, self.dtype)

    def range_of(self, node_id: NodeId) -> Assignment | None:
        """What `node_id` shall hold, or None."""
        return next((a for a in self.assignments if a.node_id == node_id), None)

    def outranks(self, other: Plan | None) -> bool:
        """Whether this plan replaces `other`. A total order, so every member ends with the same plan."""
        if other is None:
            return True
        return (self.epoch, _reversed(self.author)) > (other.epoch, _reversed(other.author))

    def may_follow(self, other: Plan | None, unix_s: float) -> bool:
        """Whether it outranks `other` by an epoch that planning can have led to."""
        return self.outranks(other) and self.epoch <= most_epoch(unix_s)


@lru_cache(maxsize=64)
def _weights(digest: str, dtype: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(f"{digest}/{dtype}".encode()).digest()[:12]).decode()


def _reversed(author: str) -> tuple[int, ...]:
    """Orders ids so that the smaller one compares greater."""
    return tuple(-ord(character) for character in author)
