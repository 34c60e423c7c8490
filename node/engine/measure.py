"""Measures what a device can do, in well under 2 s. Two rates decide how fast layers run:

decode reads every weight once per token, so it is bound by memory bandwidth; prefill multiplies large matrices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from node.engine import machine
from node.wire.records import Hardware

if TYPE_CHECKING:
    import torch

BUDGET_S = 0.4
"""For each of the two rates. A machine so slow or busy that one run takes longer is measured by that one."""

SUM_BYTES = 256 * 1024 * 1024
"""Far larger than any processor's cache."""


def measure(device: torch.device) -> Hardware:
    """Measure `device`."""
    import torch

    kind: Literal["cpu", "cuda", "mps"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        kind, name, memory = "cuda", properties.name[:128], int(properties.total_memory)
    elif device.type == "mps":
        kind, name, memory = "mps", machine.processor_name(), int(torch.mps.recommended_max_memory())
    else:
        kind, name, memory = "cpu", machine.processor_name(), machine.memory_bytes()
    with torch.inference_mode():
        return Hardware(
            device=kind,
            device_name=name,
            memory_bytes=memory,
            bandwidth_bytes_per_s=_bandwidth(device),
            matmul_flops_per_s=_matmul_rate(device),
            cores=machine.core_count(),
        )


def _bandwidth(device: torch.device) -> float:
    import torch

    numbers = torch.ones(SUM_BYTES // 4, dtype=torch.float32, device=device)

    def read() -> None:
        numbers.sum()
        _synchronise(device)

    _warm_up(device, read)
    return SUM_BYTES / best_s(read)


def _matmul_rate(device: torch.device) -> float:
    import torch

    on_cpu = device.type == "cpu"
    size, dtype = (1024, torch.float32) if on_cpu else (4096, torch.bfloat16)
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))

    def multiply() -> None:
        torch.matmul(left, right)
        _synchronise(device)

    _warm_up(device, multiply)
    return 2 * size**3 / best_s(multiply)


def best_s(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The shortest of the runs that fit into the budget, at least one: others disturb, nobody speeds up."""
    best, ended = float("inf"), clock()
    until = ended + BUDGET_S
    while ended < until:
        started = clock()
        work()
        ended = clock()
        best = min(best, ended - started)
    return max(best, 1e-9)


def _warm_up(device: torch.device, work: Callable[[], object]) -> None:
    """Once for nothing where the first call loads libraries and kernels, which may take longer than the budget."""
    if device.type != "cpu":
        work()


def _synchronise(device: torch.device) -> None:
    """Wait for the device: its work is only queued by a call."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
