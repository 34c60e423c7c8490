"""Rows as they cross the edge: token ids, or hidden states in one of three dtypes. Inside they are float32."""

from __future__ import annotations

import numpy as np

from node.engine.base import Batch
from node.errors import EngineError
from node.weights.base import Weights
from node.weights.blocks import Floats
from node.wire.frames import Buffer
from node.wire.models import Dtype


def ids_of(batch: Batch) -> np.ndarray:
    """Token ids (rows,)."""
    return np.frombuffer(batch.data, "<i4")


def hidden_of(batch: Batch, width: int) -> Floats:
    """Hidden states (rows, width)."""
    if batch.dtype == "float32":
        rows = np.frombuffer(batch.data, "<f4")
    elif batch.dtype == "float16":
        rows = np.frombuffer(batch.data, "<f2").astype(np.float32)
    else:
        rows = (np.frombuffer(batch.data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.reshape(batch.rows, width)


def bytes_of(rows: Floats, dtype: Dtype) -> Buffer:
    """Hidden states as bytes; bfloat16 by rounding to the nearest, ties to even, as everybody does."""
    if dtype == "float32":
        return np.ascontiguousarray(rows).data.cast("B")
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return rows.astype("<f2").data.cast("B")
    raw = np.ascontiguousarray(rows).view(np.uint32)
    rounded = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    narrow = np.where(np.isnan(rows), np.uint32(0x7FC0), rounded).astype("<u2")
    return narrow.data.cast("B")


def embedded(weights: Weights, ids: np.ndarray, vocabulary: int, scale: float) -> Floats:
    """Rows of the embedding (ids, width).

    Raises:
        EngineError: an id that it does not know.
    """
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocabulary:
        raise EngineError(f"token ids from {lowest} to {highest}; the vocabulary has {vocabulary}")
    rows = weights.embedding_rows(ids)
    return rows if scale == 1 else rows * np.float32(scale)
