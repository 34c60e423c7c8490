"""The narrow edge to whatever runs layers. Knows tokens and tensors, nothing of peers or people.

A tensor crosses this edge as raw little-endian bytes with its shape and dtype in the step: no torch on the node's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node.wire.frames import Sampling
from node.wire.models import Dtype
from node.wire.records import Hardware

Buffer = bytes | bytearray | memoryview

PROBE_BUDGET_S = 0.3
"""For the steps by which a stage is timed, when it is loaded and while it is idle; one is always run."""
PROBE_MOST_STEPS = 8
"""Enough to see past others' disturbance; a small model needs no more."""
PROBE_SLOW_STEP_S = 1.0
"""A first step this slow spends its time on layers, not on warming up: it is the measurement."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Layers [start, end) of one model, to be held by one worker."""

    model_folder: str
    """Holds config.json and *.safetensors."""
    start: int
    end: int
    dtype: Dtype
    kv_bytes: int
    """Memory that all sequences' keys and values may take while the worker holds these layers alone. What else it holds
    takes from it; stages over the same tensors share it."""


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What a loaded stage turned out to be."""

    weight_bytes: int
    kv_bytes_per_token: int
    """For all of its layers."""
    kv_tokens: int
    """Tokens that `kv_bytes` has room for."""
    load_s: float
    hidden_size: int
    """Width of the rows that the stage takes and gives."""
    dtype: Dtype
    """Of the rows that the stage gives."""
    layer_ms: float | None = None
    """One layer's part of a decode step, the LM head left out, timed when the stage was loaded."""
    head_ms: float | None = None
    """LM head and sampling of a decode step; None where the stage is not the last."""


@dataclass(frozen=True, slots=True)
class Step:
    """One sequence's next tokens through the stage: a prefill chunk or one decode step."""

    session: str
    position: int
    """Index of the first of them in the sequence; equals the number of tokens already in the KV cache."""
    count: int
    data: Buffer
    """First stage: int32 token ids (count,). Others: hidden states (count, hidden_size) in `dtype`."""
    dtype: Dtype | None
    """None: `data` holds token ids."""
    sampling: Sampling | None
    """Set where this stage is the last and the step's last row shall become a token."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave."""

    data: Buffer
    """Hidden states (count, hidden_size) in the stage's dtype; empty from a last stage."""
    token: int | None
    """The sampled token, where sampling was asked for."""
    compute_ms: float
    """Inside the backend."""
    head_ms: float = 0.0
    """Of that, LM head and sampling."""


class Stage(Protocol):
    """A loaded range. One step runs at a time; the caller queues."""

    info: StageInfo

    async def reserve(self, session: str, tokens: int) -> None:
        """Set KV room for `tokens` aside for a new sequence.

        Raises:
            OutOfKV: there is not that much room.
            WorkerDied: the worker is gone.
        """

    async def run(self, step: Step) -> StepResult:
        """Run one step.

        Raises:
            EngineError: the step contradicts the sequence's state, or the backend failed; the sequence is unusable.
            WorkerDied: the worker is gone, and with it every sequence.
        """

    async def free(self, session: str) -> None:
        """Forget a sequence. Harmless when it is unknown."""

    async def close(self) -> None:
        """Drop the weights and every sequence."""


class Engine(Protocol):
    """A worker that can hold stages: usually one, two while a plan changes."""

    hardware: Hardware
    """Measured when the worker started."""

    async def load(self, spec: StageSpec) -> Stage:
        """Load a range. Tensors that another stage of this worker already holds are shared, not read again.

        Raises:
            LoadFailed: files missing or damaged, or too little memory.
            WorkerDied: the worker ended while loading.
        """

    async def set_threads(self, threads: int) -> None:
        """Use that many processor threads from the next step on."""
