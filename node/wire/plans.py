"""Who holds which layers. Every member follows the valid plan with the highest epoch."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from node.wire.ids import NodeId
from node.wire.models import Count, Dtype, ModelFacts, ModelRef
from node.wire.records import Id, Layer


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


class Plan(Struct, frozen=True):
    """One allocation of the model's layers, numbered by epoch."""

    epoch: Count
    """Higher wins; equal epochs: the smaller author wins, so that two halves of a healed swarm agree."""
    author: Id
    model: ModelRef
    dtype: Dtype
    facts: ModelFacts
    assignments: Annotated[tuple[Assignment, ...], Meta(max_length=4096)]
    """In layer order. Ranges set by hand may leave gaps; then nothing is served and status says why."""
    standby: Annotated[tuple[Id, ...], Meta(max_length=4096)] = ()
    """Members that were counted and hold nothing."""

    @property
    def weights(self) -> str:
        """Equal for plans whose ranges may be mixed: the same model in the same arithmetic."""
        return f"{self.model.digest}/{self.dtype}"

    def range_of(self, node_id: NodeId) -> Assignment | None:
        """What `node_id` shall hold, or None."""
        return next((a for a in self.assignments if a.node_id == node_id), None)

    def outranks(self, other: Plan | None) -> bool:
        """Whether this plan replaces `other`. A total order, so every member ends with the same plan."""
        if other is None:
            return True
        return (self.epoch, _reversed(self.author)) > (other.epoch, _reversed(other.author))


def _reversed(author: str) -> tuple[int, ...]:
    """Orders ids so that the smaller one compares greater."""
    return tuple(-ord(character) for character in author)
