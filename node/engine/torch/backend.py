"""torch on one device: cuda (ROCm too), xpu, mps or the processor."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch

from node.engine.backend import Device
from node.engine.base import StageSpec
from node.engine.torch.arithmetic import computes_in
from node.engine.torch.loading import SharedTensors, load_stage
from node.engine.torch.stage import TorchStage


class TorchBackend:
    """A `backend.Backend`."""

    def __init__(self, device: Device) -> None:
        self.device = torch.device(device)
        self.shared = SharedTensors()

    def load(self, spec: StageSpec) -> Generator[float | None, None, TorchStage]:
        """See `backend.Backend.load`."""
        spec = replace(spec, dtype=computes_in(self.device, spec.dtype))
        # on a processor rows by themselves are exact, and joining them gains little
        return load_stage(spec, self.device, self.shared, packed=self.device.type != "cpu")

    def set_threads(self, threads: int) -> None:
        """See `backend.Backend.set_threads`. Called from the thread that computes: OpenMP counts per thread."""
        torch.set_num_threads(threads)
