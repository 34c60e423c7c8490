"""Copies a tensor out of its file in pieces, so that a stage in service need not wait for a large one."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PIECE_S = 0.02
"""What a piece is meant to take: a running stage is stopped for about so long at a time."""
FIRST_PIECE_BYTES = 4 * 1024 * 1024
LEAST_PIECE_BYTES, MOST_PIECE_BYTES = 256 * 1024, 256 * 1024 * 1024


class PieceSize:
    """How large the next piece is, so that it takes `PIECE_S`: small from a cold disk, large from memory."""

    def __init__(self) -> None:
        self.bytes = FIRST_PIECE_BYTES

    def took(self, taken_s: float) -> None:
        """A piece of this size took so long."""
        # half or twice at most: one piece, after a pause or of a busy machine, says little of the next
        factor = min(2.0, max(0.5, PIECE_S / max(taken_s, 1e-6)))
        self.bytes = int(min(MOST_PIECE_BYTES, max(LEAST_PIECE_BYTES, self.bytes * factor)))


def copied(
    stored: torch.Tensor, dtype: torch.dtype, device: torch.device, size: PieceSize
) -> Generator[None, None, torch.Tensor]:
    """A copy of `stored` on `device` in `dtype`; yields between two pieces. What they take is noted in `size`."""
    import torch

    copy = torch.empty(stored.shape, dtype=dtype, device=device)
    source, target = stored.reshape(-1), copy.view(-1)
    begin = 0
    while begin < source.numel():
        if begin:
            yield
        count = max(1, size.bytes // source.element_size())
        whole = begin + count <= source.numel()
        started_s = time.perf_counter()
        target[begin : begin + count].copy_(source[begin : begin + count])
        if device.type != "cpu":
            torch.accelerator.synchronize()
        if whole:
            size.took(time.perf_counter() - started_s)
        begin += count
    return copy
