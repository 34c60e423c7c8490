"""Hidden rows as bytes of the dtype that they travel in, and as float32 that numpy computes with. No tensor library.

numpy knows no bfloat16: its numbers are the upper halves of float32's, rounded to the nearest even one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.wire.frames import Buffer
from node.wire.models import Dtype

Rows = NDArray[np.float32]


def rows_from(data: Buffer, dtype: Dtype, width: int) -> Rows:
    """float32 (T, width) of the bytes of (T, width) rows. A view where they are float32 already."""
    match dtype:
        case "float32":
            rows = np.frombuffer(data, "<f4")
        case "float16":
            rows = np.frombuffer(data, "<f2").astype(np.float32)
        case "bfloat16":
            rows = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return rows.reshape(-1, width)


def bytes_of(rows: Rows, dtype: Dtype) -> Buffer:
    """The bytes of float32 (T, width) rows. What is too large for float16 becomes infinite there."""
    match dtype:
        case "float32":
            converted: NDArray[np.generic] = np.ascontiguousarray(rows)
        case "float16":
            with np.errstate(over="ignore"):
                converted = rows.astype("<f2")
        case "bfloat16":
            converted = _bfloat16(rows)
    return converted.view(np.uint8).data.cast("B")


def _bfloat16(rows: Rows) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(rows), np.uint32(0x7FC0), rounded).astype(np.uint16)
