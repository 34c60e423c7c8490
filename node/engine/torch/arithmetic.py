"""In which numbers a device can compute, found by trying."""

from __future__ import annotations

import sys

import torch

from node.wire.models import Dtype

FALL_BACK: dict[Dtype, tuple[Dtype, ...]] = {
    "bfloat16": ("bfloat16", "float16", "float32"),
    "float16": ("float16", "float32"),
    "float32": ("float32",),
}
"""What is tried for each dtype, in order. float16 has less range than bfloat16, but half of float32's size."""
SIDE = 64


def computes_in(device: torch.device, wanted: Dtype) -> Dtype:
    """The dtype that a model of dtype `wanted` is held and computed in on a device; says so where it is another."""
    for dtype in FALL_BACK[wanted]:
        if why := why_not(device, dtype):
            print(f"engine worker: {name_of(device)} does not compute in {dtype}: {why}", file=sys.stderr)
        else:
            return dtype
    return wanted  # loading says what is wrong with a device that computes nothing


def why_not(device: torch.device, dtype: Dtype) -> str:
    """For people; empty where a product comes out right, and not by pretending: older chips have no bfloat16 and are
    slower with it than with anything else."""
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "the chip has no such arithmetic"
    try:
        ones = torch.ones(SIDE, SIDE, dtype=getattr(torch, dtype), device=device)
        right = bool((torch.matmul(ones, ones).float().cpu() == SIDE).all())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return str(error).splitlines()[0][:200]
    return "" if right else "a product came out wrong"


def name_of(device: torch.device) -> str:
    """For people: the chip, and AMD's and Intel's libraries by their names."""
    if device.type == "cpu":
        return "the processor"
    if device.type == "mps":
        return "Apple's chip (mps)"
    library = "ROCm" if torch.version.hip else {"xpu": "XPU"}.get(device.type, "CUDA")
    try:
        return f"{getattr(torch, device.type).get_device_name(device)} ({library})"
    except (RuntimeError, AssertionError, AttributeError):
        return f"an unknown chip ({library})"
