"""A matrix in the form that onnxruntime's kernels take: float32, or 4 or 8 bits on a grid (`MatMulNBits`).

The kernel's fast path knows grids whose zero is a whole number. GGUF types with a minimum have none: rounding it to one
makes the result 70 times worse. So the minimum is a small matrix of its own, which the sums of the input's blocks are
multiplied with; or, for 5-bit types, the grid is made eight times finer, on which the zero falls close enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from node.weights.blocks import Bits, Blocks, Floats, Matrix, floats, quantised

Arithmetic = Literal["stored", "float32", "int8", "int4"]
"""`stored`: blocks as they are, everything else float32."""

FINER = 8
"""Times that a 5-bit grid is made finer."""
SUM_BLOCK = 16
"""Columns that share a scale in the matrix of minimums."""
BLOCK = 32
"""Columns that share a scale where we quantise."""


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = x times the transposed matrix, plus a bias."""

    matrix: Floats | Blocks
    """Float32 (rows, columns), or blocks with a whole zero and no minimums."""
    minimums: Floats | None = None
    """(rows, columns / block): taken from the product, multiplied with the sums of the input's blocks."""
    bias: Floats | None = None
    """(rows,)"""

    @property
    def rows(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def columns(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def form(self) -> tuple[object, ...]:
        """Those with equal ones can be joined."""
        bias = self.bias is None
        if not isinstance(self.matrix, Blocks):
            return (self.columns, "float32", bias)
        zero = self.matrix.zero if isinstance(self.matrix.zero, int) else None
        return (self.columns, self.matrix.bits, self.matrix.block, zero, self.minimums is None, bias)


def linear_of(matrix: Matrix, arithmetic: Arithmetic, bias: Floats | None = None) -> Linear:
    """The form in which a matrix (rows, columns) is multiplied."""
    if arithmetic == "float32":
        return Linear(floats(matrix), None, bias)
    if not isinstance(matrix, Blocks):
        if arithmetic == "stored" or matrix.shape[-1] % BLOCK:
            return Linear(floats(matrix), None, bias)
        return Linear(quantised(floats(matrix), _bits(arithmetic), BLOCK), None, bias)
    if arithmetic == "int4" and matrix.bits == 8 and not matrix.shape[-1] % BLOCK:
        return Linear(quantised(matrix.values(), 4, BLOCK), None, bias)
    blocks, minimums = on_whole_zero(matrix)
    return Linear(blocks, minimums, bias)


def _bits(arithmetic: Arithmetic) -> Bits:
    return 4 if arithmetic == "int4" else 8


def on_whole_zero(blocks: Blocks) -> tuple[Blocks, Floats | None]:
    """The same numbers as blocks with a whole zero, and minimums to take away where there must be some."""
    if blocks.minimums is None:
        return blocks, None
    if blocks.bits == 8:
        finer = _finer(blocks)
        if finer is not None:
            return finer, None
    centred = blocks.centred()
    return replace(centred, minimums=None), centred.minimums


def _finer(blocks: Blocks) -> Blocks | None:
    """A grid eight times finer on which the minimum is nearly a whole number of steps; None where it does not fit."""
    if blocks.minimums is None or not isinstance(blocks.zero, int):
        return None
    quants = (blocks.quants.astype(np.int32) - blocks.zero) * FINER
    if int(quants.max(initial=0)) > 255 or int(quants.min(initial=0)) < 0:
        return None
    scales = blocks.scales / np.float32(FINER)
    flat = scales == 0  # all numbers of the block are its minimum
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zero = np.rint(blocks.minimums / scales)
    if not bool(((zero >= 0) & (zero <= 255) | (flat & (blocks.minimums == 0))).all()):
        return None
    zero = np.where(flat, 0, zero).astype(np.uint8)
    return Blocks(8, blocks.block, quants.astype(np.uint8), scales, zero)


def joined(parts: list[Linear]) -> Linear | None:
    """One product for several over the same input, their rows one after another; None where their forms differ."""
    if len({part.form for part in parts}) > 1:
        return None
    bias = _together([part.bias for part in parts])
    matrices = [part.matrix for part in parts]
    if not all(isinstance(matrix, Blocks) for matrix in matrices):
        return Linear(np.concatenate([floats(matrix) for matrix in matrices]), None, bias)
    blocks = [matrix for matrix in matrices if isinstance(matrix, Blocks)]
    zeros = [one.zero for one in blocks if not isinstance(one.zero, int)]
    one = Blocks(
        blocks[0].bits,
        blocks[0].block,
        np.concatenate([block.quants for block in blocks]),
        np.concatenate([block.scales for block in blocks]),
        np.concatenate(zeros) if zeros else blocks[0].zero,
    )
    return Linear(one, _together([part.minimums for part in parts]), bias)


def _together(parts: list[Floats | None]) -> Floats | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


def packed_zeros(blocks: Blocks) -> NDArray[np.uint8] | None:
    """The zeros as the kernel takes them, (rows, bytes of a row); None for the middle, which it assumes."""
    middle = 1 << (blocks.bits - 1)
    if isinstance(blocks.zero, int) and blocks.zero == middle:
        return None
    rows, columns = blocks.scales.shape
    zeros = np.full((rows, columns), blocks.zero, np.uint8) if isinstance(blocks.zero, int) else blocks.zero
    if blocks.bits == 8:
        return np.ascontiguousarray(zeros)
    if columns % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return np.ascontiguousarray(zeros[:, 0::2] | (zeros[:, 1::2] << np.uint8(4)))
