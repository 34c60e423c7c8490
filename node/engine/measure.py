"""Measures what a device can do, in well under 2 s. Two rates decide how fast layers run:

decode reads every weight once per token, so it is bound by memory bandwidth; prefill multiplies large matrices.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from node.engine import machine
from node.wire.records import Hardware

if TYPE_CHECKING:
    from node.engine.backend import Device

BUDGET_S = 0.4
"""For each of the two rates. A machine so slow or busy that one run takes longer is measured by that one."""

READ_BYTES = 256 * 1024 * 1024
"""Far larger than any processor's cache."""

CPU_MATRIX, GPU_MATRIX = 1024, 4096
"""Rows and columns of what is multiplied."""


def measure(device: Device) -> Hardware:
    """Measure a device: the processor with numpy, which every installation has, Apple's chips with MLX where that is
    installed, others with torch."""
    if device == "cpu":
        return _measure_processor()
    if device == "mps" and importlib.util.find_spec("mlx") is not None:
        from node.engine.mlx.measuring import measure_chip

        return measure_chip()
    import torch

    if device in ("cuda", "xpu"):
        properties = getattr(torch, device).get_device_properties(device)
        name, memory = properties.name[:128], int(properties.total_memory)
    else:
        name, memory = machine.processor_name(), int(torch.mps.recommended_max_memory())
    with torch.inference_mode():
        numbers = torch.ones(READ_BYTES // 4, dtype=torch.float32, device=device)
        left, right = (torch.ones(GPU_MATRIX, GPU_MATRIX, dtype=torch.bfloat16, device=device) for _ in range(2))

        def finished(work: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                work()
                _synchronise(device)

            run()  # once for nothing: the first call loads kernels, which may take longer than the budget
            return run

        return Hardware(
            device=device,
            device_name=name,
            memory_bytes=memory,
            bandwidth_bytes_per_s=READ_BYTES / best_s(finished(numbers.sum)),
            matmul_flops_per_s=2 * GPU_MATRIX**3 / best_s(finished(lambda: torch.matmul(left, right))),
            cores=machine.core_count(),
        )


def _measure_processor() -> Hardware:
    """One thread for each core, since a worker's numpy is told to start none of its own."""
    import numpy as np

    cores = machine.core_count()
    numbers = np.ones(READ_BYTES // 4, np.float32)
    parts = np.array_split(numbers, cores)
    matrix = np.ones((CPU_MATRIX, CPU_MATRIX), np.float32)
    bands = np.array_split(matrix, cores)  # of rows
    with ThreadPoolExecutor(cores, "measure") as pool:
        # a product with itself reads every number once
        read_s = best_s(lambda: list(pool.map(np.dot, parts, parts)))
        multiply_s = best_s(lambda: list(pool.map(np.matmul, bands, [matrix] * cores)))
    return Hardware(
        device="cpu",
        device_name=machine.processor_name(),
        memory_bytes=machine.memory_bytes(),
        bandwidth_bytes_per_s=READ_BYTES / read_s,
        matmul_flops_per_s=2 * CPU_MATRIX**3 / multiply_s,
        cores=cores,
    )


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


def _synchronise(device: Device) -> None:
    """Wait for the device: its work is only queued by a call."""
    import torch

    torch.accelerator.synchronize(device)
