"""Slots of a batch on their way through a slice: each by itself over its own cache, or several packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from node.engine.base import Slot, SlotResult
from node.engine.kv_cache import Sequence
from node.engine.sampler import sample
from node.engine.torch.packed_attention import Span
from node.engine.torch.packing import PackedSequence, forward
from node.engine.torch.slice import TorchSlice
from node.errors import EngineError
from node.wire.frames import Want

if TYPE_CHECKING:
    from transformers import DynamicCache

    Cache: TypeAlias = DynamicCache | PackedSequence
else:
    Cache = object


@dataclass(frozen=True, slots=True, eq=False)
class SlotRows:
    """A slot that can run."""

    index: int
    """In the batch."""
    slot: Slot
    sequence: Sequence[Cache]
    within: slice
    """Its rows among the batch's."""

    @property
    def wanted(self) -> int:
        """Tokens."""
        return {"nothing": 0, "token": 1, "each": self.slot.count}[self.slot.want]

    @property
    def one_by_one(self) -> bool:
        """Whether its rows are to be computed one after another."""
        return self.slot.replay and self.slot.count > 1

    def sampled(self, logits: NDArray[np.float32]) -> SlotResult:
        """The tokens of its last rows' logits, (wanted, vocabulary)."""
        sampling = self.sequence.sampling
        if sampling is None:
            return SlotResult()
        first = self.slot.position + self.slot.count - self.wanted + 1
        try:
            return SlotResult(tuple(sample(row, sampling, first + index) for index, row in enumerate(logits)))
        except EngineError as error:
            self.sequence.broken = str(error)
            return SlotResult(problem=str(error))


def computed(part: TorchSlice, group: list[SlotRows], rows: torch.Tensor) -> torch.Tensor:
    """What the slots' rows become, slot by slot: hidden states (rows, hidden_size), or the logits that are wanted,
    (wanted, vocabulary); of the model's last layers without any wanted, whatever.

    `rows` are those of the whole batch.
    """
    first = group[0]
    if first.one_by_one:
        single = [_one_of(first, at) for at in range(first.slot.count)]
        given = [computed(part, [one], rows) for one in single]
        return torch.cat(given[len(given) - first.wanted :] if first.wanted else given)
    if not isinstance(first.sequence.cache, PackedSequence):
        return part.forward(rows[first.within], first.sequence.cache, first.slot.position, logits=first.wanted)
    spans: list[Span] = []
    wanted: list[int] = []
    begin = 0
    for one in group:
        assert isinstance(one.sequence.cache, PackedSequence)
        spans.append(Span(one.sequence.cache.table, one.slot.position, one.slot.count, begin))
        begin += one.slot.count
        wanted += range(begin - one.wanted, begin)
    given_rows = torch.cat([rows[one.within] for one in group])
    return forward(part, given_rows, spans, first.sequence.cache.pages, wanted or None)


def _one_of(rows: SlotRows, at: int) -> SlotRows:
    """One row of a slot, as a slot."""
    want: Want = "token" if at >= rows.slot.count - rows.wanted else "nothing"
    begin = rows.within.start + at
    slot = Slot(rows.slot.sequence, rows.slot.position + at, 1, want)
    return SlotRows(rows.index, slot, rows.sequence, slice(begin, begin + 1))
