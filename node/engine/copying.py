"""Copies a tensor out of its file in pieces, so that a stage in service need not wait for a large one."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PIECE_S = 0.02
"""What a piece is meant to take: a running stage is stopped for about so long at a time."""
FIRST_PIECE_BYTES = 4 * 1024 * 1024
LEAST_PIECE_BYTES, MOST_PIECE_BYTES = 256 * 1024, 256 * 1024 * 1024


def copied(
    stored: torch.Tensor, dtype: torch.dtype, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> Generator[None, None, torch.Tensor]:
    """A copy of `stored` on `device` in `dtype`; yields between two pieces.

    A piece is as large as the last ones' speed lets it take `PIECE_S`: a cold disk gets small ones, memory large ones.
    """
    import torch

    copy = torch.empty(stored.shape, dtype=dtype, device=device)
    source, target = stored.reshape(-1), copy.view(-1)
    step, begin = max(1, FIRST_PIECE_BYTES // stored.element_size()), 0
    least, most = (bound // stored.element_size() for bound in (LEAST_PIECE_BYTES, MOST_PIECE_BYTES))
    while begin < source.numel():
        if begin:
            yield
        started_s = clock()
        target[begin : begin + step].copy_(source[begin : begin + step])
        if device.type != "cpu":
            torch.accelerator.synchronize()
        taken_s = clock() - started_s
        begin += step
        # half the way at most, and at most twice: the first piece after a pause says little of the next
        step = int(min(most, max(least, step * min(2.0, max(0.5, PIECE_S / max(taken_s, 1e-6))))))
    return copy
