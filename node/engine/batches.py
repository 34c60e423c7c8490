"""What a batch and its slots must be, whatever computes them. No tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from node.engine.base import Batch, Slot, StageInfo
from node.errors import EngineError
from node.wire.frames import Sampling
from node.wire.models import Dtype

MAX_BATCH_ROWS = 8192
"""Of all slots together. Their hidden states are 64 MiB at most where 2,048 rows are 8,192 wide in float32."""
EACH_MOST_ROWS = 128
"""Of one slot that wants a token per row: logits of 128 rows and a vocabulary of 150,000 are 77 MB."""
SUSPECT_FAILURES = 3
"""Of a library in a row, before it is tried whether it computes anything at all: a device that has failed once may do
so for ever, while a sequence that it fails on ends alone."""

BYTES_OF: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


def check_batch(batch: Batch, info: StageInfo) -> None:
    """Refuse what cannot be a batch for a stage.

    Raises:
        EngineError: no slots, too many slots or rows, a sequence twice, a slot without rows, or a buffer of another
            size than its rows have.
    """
    if not 1 <= len(batch.slots) <= info.max_sequences:
        raise EngineError(f"a batch of {len(batch.slots)} slots; it must have 1 to {info.max_sequences}")
    if len({slot.sequence for slot in batch.slots}) < len(batch.slots):
        raise EngineError("a batch with one sequence in two slots; give it in two batches")
    for slot in batch.slots:
        if slot.count < 1 or slot.position < 0:
            raise EngineError(f"sequence {slot.sequence}: {slot.count} rows at position {slot.position}")
    if batch.rows > info.max_batch_rows:
        raise EngineError(f"a batch of {batch.rows} rows, at most {info.max_batch_rows} may be; use shorter chunks")
    row_bytes = 4 if batch.dtype is None else info.hidden_size * BYTES_OF[batch.dtype]
    if (given := memoryview(batch.data).nbytes) != batch.rows * row_bytes:
        raise EngineError(f"{given} bytes for {batch.rows} rows, {batch.rows * row_bytes} expected")


class OnLayers(Protocol):
    """A sequence that runs through layers [start, end)."""

    start: int
    end: int


def layers_of(batch: Batch, find: Callable[[str], OnLayers | None]) -> tuple[int, int] | None:
    """The layers [start, end) that the batch's sequences run through; None where none of them is known.

    Raises:
        EngineError: those of several ranges.
    """
    found = (find(slot.sequence) for slot in batch.slots)
    ranges = {(sequence.start, sequence.end) for sequence in found if sequence is not None}
    if len(ranges) > 1:
        raise EngineError(f"one batch over several ranges of layers {sorted(ranges)}; make a batch of each")
    return ranges.pop() if ranges else None


def refuse_rows_of_another_kind(batch: Batch, *, first: bool) -> None:
    """Raises EngineError: token ids for layers that do not begin the model, or hidden states for those that do."""
    if (batch.dtype is None) != first:
        given = "token ids" if batch.dtype is None else "hidden states"
        raise EngineError(f"{given} for layers that {'do' if first else 'do not'} begin the model")


def refuse_want(slot: Slot, sampling: Sampling | None, *, last: bool) -> None:
    """Raises EngineError: the slot wants a token, and its sequence does not end the model or has no sampling."""
    if slot.want != "nothing" and (not last or sampling is None):
        what = "opened without a sampling" if last else "that does not reach the model's last layer"
        raise EngineError(f"a token of sequence {slot.sequence}, {what}")


def refuse_many_tokens(slot: Slot) -> None:
    """Raises EngineError: the slot wants a token for each of more rows than there is memory for their logits."""
    if slot.want == "each" and slot.count > EACH_MOST_ROWS:
        raise EngineError(f"a token for each of {slot.count} rows; at most {EACH_MOST_ROWS} at a time")


def refuse_foreign_ids(lowest: int, highest: int, vocabulary: int) -> None:
    """Raises EngineError: token ids between these two that the embedding does not know."""
    if lowest < 0 or highest >= vocabulary:
        raise EngineError(f"token ids from {lowest} to {highest}; the vocabulary has {vocabulary}")
