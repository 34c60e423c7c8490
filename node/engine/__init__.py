"""Runs a range of a model's layers. Knows tokens and tensors, nothing of peers or people.

The node's side is `base` (the narrow edge) and `process` (the worker as a child process); neither imports torch.
The worker's side starts at `worker` and reaches torch through `backend` alone.
"""

from node.engine.base import (
    BackendInfo,
    Batch,
    BatchResult,
    Engine,
    Slot,
    SlotResult,
    Stage,
    StageInfo,
    StageSpec,
)

__all__ = [
    "BackendInfo",
    "Batch",
    "BatchResult",
    "Engine",
    "Slot",
    "SlotResult",
    "Stage",
    "StageInfo",
    "StageSpec",
]
