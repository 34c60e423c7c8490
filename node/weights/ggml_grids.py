"""ggml's quantised blocks as `Blocks`: the file's own numbers, nothing rounded. Layouts from ggml-quants.c.

Each function takes (blocks, bytes of one block) and gives quants, scales and minimums of those blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.weights.blocks import Bits, Blocks, Bytes, Floats
from node.weights.ggml_types import BY_NAME

Parts = tuple[NDArray[np.int16], Floats, Floats | None]
"""Quants without their zero added, (blocks, items); scales and minimums, (blocks, items / block)."""

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int16
)  # kvalues_iq4nl
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int16)  # e2m1, doubled


@dataclass(frozen=True, slots=True)
class Grid:
    """How one type's numbers are spread."""

    bits: Bits
    block: int
    zero: int
    read: Callable[[Bytes], Parts]


CHUNK_ITEMS = 1 << 22
"""Numbers that are taken apart at a time: what that needs in between is some tens of MB, however large the matrix."""


def from_ggml(raw: Bytes, kind: str) -> Blocks | None:
    """The blocks of rows (rows, bytes of a row) of a type; None for a type that is no grid of this form."""
    grid = GRIDS.get(kind)
    if grid is None:
        return None
    rows, form = raw.shape[0], BY_NAME[kind]
    columns = raw.shape[1] // form.block_bytes * form.block_items
    quants = np.empty((rows, columns // grid.block, grid.block), np.uint8)
    scales = np.empty((rows, columns // grid.block), np.float32)
    minimums: Floats | None = None
    step = max(1, CHUNK_ITEMS // max(1, columns))
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        with np.errstate(all="ignore"):  # damaged scales may be infinite
            found, found_scales, found_minimums = grid.read(raw[piece].reshape(-1, form.block_bytes))
        quants[piece] = (found + np.int16(grid.zero)).reshape(quants[piece].shape)
        scales[piece] = found_scales.reshape(scales[piece].shape)
        if found_minimums is not None:
            if minimums is None:
                minimums = np.empty_like(scales)
            minimums[piece] = found_minimums.reshape(scales[piece].shape)
    return Blocks(grid.bits, grid.block, quants, scales, grid.zero, minimums)


def dequantised(raw: Bytes, kind: str) -> Floats:
    """float32 (rows, columns) of rows (rows, bytes of a row) of a type that is no such grid."""
    from gguf.constants import GGMLQuantizationType  # takes a quarter of a second to import; few files have these types
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):
        values: Floats = dequantize(raw, GGMLQuantizationType[kind])
    return values


def _halves(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """All low halves of the last axis, then all high ones."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1)


def _pairs(raw: Bytes, parts: int, count: int) -> Bytes:
    """2-bit numbers (blocks, parts, 4, count): the lowest two bits of `count` bytes, then the next two, and so on."""
    return (raw.reshape(-1, parts, 1, count) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & np.uint8(3)


def _q8_0(b: Bytes) -> Parts:
    return b[:, 2:].view(np.int8).astype(np.int16), _halves(b[:, :2]), None


def _q4_0(b: Bytes) -> Parts:
    return _nibbles(b[:, 2:]).astype(np.int16) - 8, _halves(b[:, :2]), None


def _q4_1(b: Bytes) -> Parts:
    return _nibbles(b[:, 4:]).astype(np.int16), _halves(b[:, :2]), -_halves(b[:, 2:4])


def _five_bits(b: Bytes, start: int) -> NDArray[np.int16]:
    high = np.unpackbits(b[:, start : start + 4], axis=-1, bitorder="little")
    return (_nibbles(b[:, start + 4 :]) | (high << np.uint8(4))).astype(np.int16)


def _q5_0(b: Bytes) -> Parts:
    return _five_bits(b, 2) - 16, _halves(b[:, :2]), None


def _q5_1(b: Bytes) -> Parts:
    return _five_bits(b, 4), _halves(b[:, :2]), -_halves(b[:, 2:4])


def _six_bit_scales(b: Bytes) -> tuple[Floats, Floats]:
    """Scales and minimums, (blocks, 8) each, of a Q4_K or Q5_K block: twelve bytes hold sixteen 6-bit numbers."""
    first, second, third = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=1).astype(np.float32)
    minimums = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=1).astype(np.float32)
    return _halves(b[:, :2]) * scales, _halves(b[:, 2:4]) * minimums


def _q2_k(b: Bytes) -> Parts:
    scales = _halves(b[:, 80:82]) * (b[:, :16] & 15).astype(np.float32)
    minimums = _halves(b[:, 82:84]) * (b[:, :16] >> 4).astype(np.float32)
    return _pairs(b[:, 16:80], 2, 32).astype(np.int16), scales, minimums


def _q3_k(b: Bytes) -> Parts:
    packed = b[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = _pairs(packed[:, 8:], 1, 4).reshape(-1, 16)
    scales = (low | (high << np.uint8(4))).astype(np.float32) - 32
    bits = (b[:, None, :32] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & np.uint8(1)
    quants = _pairs(b[:, 32:96], 2, 32).reshape(-1, 8, 32).astype(np.int16) - np.where(bits == 1, 0, 4).astype(np.int16)
    return quants, _halves(b[:, 108:110]) * scales, None


def _q4_k(b: Bytes) -> Parts:
    return _nibbles(b[:, 16:].reshape(-1, 4, 32)).astype(np.int16), *_six_bit_scales(b)


def _q5_k(b: Bytes) -> Parts:
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & np.uint8(1)
    low = _nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (low | (high << np.uint8(4))).astype(np.int16), *_six_bit_scales(b)


def _q6_k(b: Bytes) -> Parts:
    low_bytes = b[:, :128].reshape(-1, 2, 64)
    left, right = low_bytes[..., :32], low_bytes[..., 32:]
    low = np.stack([left & 15, right & 15, left >> 4, right >> 4], axis=2)
    high = _pairs(b[:, 128:192], 2, 32)
    scales = _halves(b[:, 208:210]) * b[:, 192:208].view(np.int8).astype(np.float32)
    return (low | (high << np.uint8(4))).astype(np.int16) - 32, scales, None


def _iq4_nl(b: Bytes) -> Parts:
    return IQ4_VALUES[_nibbles(b[:, 2:])], _halves(b[:, :2]), None


def _iq4_xs(b: Bytes) -> Parts:
    high = np.ascontiguousarray(b[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    scales = (low | (high.astype(np.uint8) << np.uint8(4))).astype(np.float32) - 32
    return IQ4_VALUES[_nibbles(b[:, 8:].reshape(-1, 8, 16))], _halves(b[:, :2]) * scales, None


def _mxfp4(b: Bytes) -> Parts:
    scales = np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128)  # half of e8m0, as the values are doubled
    return MXFP4_VALUES[_nibbles(b[:, 1:])], scales, None


def _tq2_0(b: Bytes) -> Parts:
    return _pairs(b[:, :64], 2, 32).astype(np.int16) - 1, _halves(b[:, 64:66]), None


GRIDS = {
    "Q8_0": Grid(8, 32, 128, _q8_0),
    "Q4_0": Grid(4, 32, 8, _q4_0),
    "Q4_1": Grid(4, 32, 0, _q4_1),
    "Q5_0": Grid(8, 32, 128, _q5_0),
    "Q5_1": Grid(8, 32, 0, _q5_1),
    "Q2_K": Grid(4, 16, 0, _q2_k),
    "Q3_K": Grid(4, 16, 8, _q3_k),
    "Q4_K": Grid(4, 32, 0, _q4_k),
    "Q5_K": Grid(8, 32, 0, _q5_k),
    "Q6_K": Grid(8, 16, 128, _q6_k),
    "IQ4_NL": Grid(8, 32, 128, _iq4_nl),
    "IQ4_XS": Grid(8, 32, 128, _iq4_xs),
    "MXFP4": Grid(8, 32, 128, _mxfp4),
    "TQ2_0": Grid(4, 256, 8, _tq2_0),
}
