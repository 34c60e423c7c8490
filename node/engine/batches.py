"""What a batch must be before any backend looks at it. No tensors."""

from __future__ import annotations

from node.engine.base import Batch, StageInfo
from node.errors import EngineError
from node.wire.models import Dtype

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
