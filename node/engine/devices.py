"""Which device computes. Asks a tensor library only where there may be something else than the processor."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from node.engine.base import DeviceChoice
from node.errors import EngineError

if TYPE_CHECKING:
    from node.engine.backend import Device

GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""What the drivers of NVIDIA, AMD and Windows' Linux show under Linux."""


def choose_device(choice: DeviceChoice) -> Device:
    """The device that a choice stands for.

    Raises:
        EngineError: it is not there.
    """
    if choice == "cpu" or (choice == "auto" and not may_have_gpu()):
        return "cpu"
    there = _devices_of_mlx() or _devices_of_torch()
    if choice == "auto":
        return next((device for device in ("cuda", "xpu", "mps") if device in there), "cpu")
    if choice not in there:
        how = "" if there else "; pip install 'parallax-tui[torch]' computes on it"
        raise EngineError(f"there is no {choice} device here that torch or MLX can use{how}")
    return choice


def may_have_gpu() -> bool:
    """Whether it is worth the seconds that importing a tensor library takes to look for one."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", "C:\\Windows")) / "System32" / "nvcuda.dll").exists()
    return any(os.path.exists(node) for node in GPU_NODES)


def _devices_of_mlx() -> list[Device]:
    """Beside the processor: where MLX is installed on Apple silicon, its chip is there, and torch need not be asked."""
    apples = sys.platform == "darwin" and platform.machine() == "arm64"
    return ["mps"] if apples and importlib.util.find_spec("mlx") is not None else []


def _devices_of_torch() -> list[Device]:
    """Beside the processor; none where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    there: list[Device] = []
    if torch.cuda.is_available():  # ROCm too
        there.append("cuda")
    if torch.xpu.is_available():
        there.append("xpu")
    if torch.backends.mps.is_available():
        there.append("mps")
    return there
