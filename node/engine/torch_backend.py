"""torch on one device: cuda (ROCm too), mps or the processor."""

from __future__ import annotations

from collections.abc import Generator
from importlib.metadata import version

import torch

from node.engine.backend import DeviceChoice
from node.engine.base import BackendInfo, StageSpec
from node.engine.loading import MAX_BATCH_ROWS, MAX_SEQUENCES, SharedTensors, load_stage
from node.engine.measure import measure
from node.engine.torch_stage import TorchStage
from node.errors import EngineError
from node.wire.records import Hardware


class TorchBackend:
    """A `backend.Backend`."""

    def __init__(self, choice: DeviceChoice) -> None:
        self.device = choose_device(choice)
        self.shared = SharedTensors()
        self.info = BackendInfo(
            name="torch",
            version=f"torch {torch.__version__}, transformers {version('transformers')}",
            dtypes=("float32", "bfloat16", "float16"),
            max_batch_rows=MAX_BATCH_ROWS,
            max_sequences=MAX_SEQUENCES,
        )

    def measure(self) -> Hardware:
        """See `backend.Backend.measure`."""
        return measure(self.device)

    def load(self, spec: StageSpec) -> Generator[None, None, TorchStage]:
        """See `backend.Backend.load`."""
        return load_stage(spec, self.device, self.shared)

    def set_threads(self, threads: int) -> None:
        """See `backend.Backend.set_threads`. Called from the thread that computes: OpenMP counts per thread."""
        torch.set_num_threads(threads)


def choose_device(choice: DeviceChoice) -> torch.device:
    """The device that a choice stands for.

    Raises:
        EngineError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not there[choice]:
        raise EngineError(f"there is no {choice} device here that torch can use")
    return torch.device(choice)
