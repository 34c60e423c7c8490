"""torch on one device: cuda (ROCm too), mps or the processor."""

from __future__ import annotations

from collections.abc import Generator

import torch

from node.engine.backend import Device
from node.engine.base import StageSpec
from node.engine.torch.loading import SharedTensors, load_stage
from node.engine.torch.stage import TorchStage


class TorchBackend:
    """A `backend.Backend`."""

    def __init__(self, device: Device) -> None:
        self.device = torch.device(device)
        self.shared = SharedTensors()

    def load(self, spec: StageSpec) -> Generator[None, None, TorchStage]:
        """See `backend.Backend.load`."""
        return load_stage(spec, self.device, self.shared)

    def set_threads(self, threads: int) -> None:
        """See `backend.Backend.set_threads`. Called from the thread that computes: OpenMP counts per thread."""
        torch.set_num_threads(threads)
