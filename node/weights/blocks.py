"""A matrix on a grid, as quantised files store it: small whole numbers, and a scale for each few of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Bits = Literal[4, 8]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """value = scales * (quants - zero) - minimums, in float32, multiplied before it is subtracted."""

    bits: Bits
    """That a quant fits into."""
    block: int
    """Columns that share a scale."""
    quants: Bytes
    """(..., rows, columns / block, block), one number to a byte."""
    scales: Floats
    """(..., rows, columns / block)"""
    zero: int | Bytes
    """The quant that stands for 0: one for all, or one for each block, (..., rows, columns / block)."""
    minimums: Floats | None = None
    """(..., rows, columns / block); None where the grid passes through 0."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., rows, columns)"""
        *outer, blocks, block = self.quants.shape
        return (*outer, blocks * block)

    @property
    def nbytes(self) -> int:
        """In memory, with two 4-bit quants in a byte."""
        quants = self.quants.size * self.bits // 8
        zero = 0 if isinstance(self.zero, int) else self.zero.size * self.bits // 8
        return quants + zero + self.scales.nbytes + (0 if self.minimums is None else self.minimums.nbytes)

    def values(self) -> Floats:
        """The numbers that these blocks stand for, float32 (..., rows, columns)."""
        zero = self.zero if isinstance(self.zero, int) else self.zero[..., None].astype(np.float32)
        with np.errstate(all="ignore"):  # damaged scales may be infinite; that is for the probe to notice
            numbers = self.quants.astype(np.float32)
            numbers -= zero
            numbers *= self.scales[..., None]
            if self.minimums is not None:
                numbers -= self.minimums[..., None]
        return numbers.reshape(self.shape)

    def centred(self) -> Blocks:
        """The same with the middle of the range as its zero, for kernels that know no other.

        Exact without minimums; with them each is rounded once more, by half a unit in its last place.
        """
        middle = 1 << (self.bits - 1)
        if not isinstance(self.zero, int) or self.zero == middle:
            return self
        lift = self.scales * np.float32(middle - self.zero)
        minimums = -lift if self.minimums is None else self.minimums - lift
        return Blocks(self.bits, self.block, self.quants, self.scales, middle, minimums)

    def packed(self) -> Bytes:
        """The quants, (..., rows, columns / block, block * bits / 8): of two 4-bit ones the first in the low half."""
        if self.bits == 8:
            return self.quants
        low, high = self.quants[..., 0::2], self.quants[..., 1::2]
        return np.ascontiguousarray(low | (high << np.uint8(4)))

    def rows(self, start: int, stop: int, step: int = 1) -> Blocks:
        """Views of rows [start, stop) of every matrix, or of every `step`-th of them."""

        cut = slice(start, stop, step)
        zero = self.zero if isinstance(self.zero, int) else self.zero[..., cut, :]
        minimums = None if self.minimums is None else self.minimums[..., cut, :]
        return Blocks(self.bits, self.block, self.quants[..., cut, :, :], self.scales[..., cut, :], zero, minimums)


Matrix = NDArray[np.float32] | NDArray[np.float16] | Blocks
"""As a file has it. bfloat16, which numpy lacks, comes as float32 of the same value."""


def bfloat16(raw: Bytes) -> Floats:
    """float32 of the same value: (…, columns) of bytes (…, 2 * columns)."""
    return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def floats(matrix: Matrix) -> Floats:
    """The numbers of a matrix as float32."""
    return matrix.values() if isinstance(matrix, Blocks) else matrix.astype(np.float32, copy=False)


def rows_of(matrix: Matrix, start: int, stop: int) -> Matrix:
    """Rows [start, stop), of every matrix where several lie together."""
    return matrix.rows(start, stop) if isinstance(matrix, Blocks) else matrix[..., start:stop, :]


def stacked(matrices: list[Matrix]) -> Matrix:
    """Matrices of one form as one array with a new first axis; where the grids differ, of float32."""
    blocks = [matrix for matrix in matrices if isinstance(matrix, Blocks)]
    if len(blocks) != len(matrices):
        return np.stack([floats(matrix) for matrix in matrices])
    first = blocks[0]
    alike = {
        (one.bits, one.block, one.zero if isinstance(one.zero, int) else None, one.minimums is None) for one in blocks
    }
    if len(alike) > 1:
        return np.stack([one.values() for one in blocks])
    zeros = [one.zero for one in blocks if not isinstance(one.zero, int)]
    minimums = [one.minimums for one in blocks if one.minimums is not None]
    return Blocks(
        first.bits,
        first.block,
        np.stack([one.quants for one in blocks]),
        np.stack([one.scales for one in blocks]),
        np.stack(zeros) if zeros else first.zero,
        np.stack(minimums) if minimums else None,
    )


def quantised(values: Floats, bits: Bits, block: int = 32) -> Blocks:
    """The nearest numbers of a grid that passes through 0, with the block's largest number at its edge.

    Columns must be a multiple of `block`. 8 bits: 127 steps to each side. 4 bits: as ggml's Q4_0, whose eight steps go
    to the side of the largest number, seven to the other.
    """
    *outer, columns = values.shape
    groups = values.reshape(*outer, columns // block, block)
    if bits == 8:
        scales = np.abs(groups).max(-1) / np.float32(127)
        middle = 128
    else:
        farthest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)[..., 0]
        scales = farthest / np.float32(-8)
        middle = 8
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scales[..., None] == 0, np.float32(0), groups / scales[..., None])
        highest = 255 if bits == 8 else 15
        # what is no number stays none by its block's scale, whatever its quant becomes
        quants = np.clip(np.rint(steps) + middle, 0, highest).astype(np.uint8)
    return Blocks(bits, block, quants, scales.astype(np.float32), middle)
