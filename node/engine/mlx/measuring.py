"""Measures Apple's chips: the two rates that decide how fast layers run, as `node.engine.measure` does elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from node.engine import machine
from node.engine.measure import GPU_MATRIX, READ_BYTES, best_s
from node.wire.records import Hardware


def measure_chip() -> Hardware:
    """Measure the graphics chip; takes well under 2 s."""
    memory_bytes = mx.device_info().get("max_recommended_working_set_size", machine.memory_bytes())
    reading_s, multiplying_s = times_s(READ_BYTES // 4, GPU_MATRIX)
    return Hardware(
        device="mps",
        device_name=machine.processor_name(),
        memory_bytes=int(memory_bytes),
        bandwidth_bytes_per_s=READ_BYTES / reading_s,
        matmul_flops_per_s=2 * GPU_MATRIX**3 / multiplying_s,
        cores=machine.core_count(),
    )


def times_s(numbers: int, side: int) -> tuple[float, float]:
    """Seconds for reading so many float32 numbers, and for multiplying two square matrices of bfloat16."""
    read = mx.ones(numbers, mx.float32)
    left, right = mx.ones((side, side), mx.bfloat16), mx.ones((side, side), mx.bfloat16)
    mx.eval(read, left, right)

    def finished(work: Callable[[], mx.array]) -> Callable[[], None]:
        def run() -> None:
            mx.eval(work())

        run()  # once for nothing: the first call makes kernels
        return run

    return best_s(finished(lambda: mx.sum(read))), best_s(finished(lambda: left @ right))
