"""The narrow edge to whatever runs layers. Knows tokens and tensors, nothing of peers or people.

A tensor crosses this edge as raw little-endian bytes with its dtype beside it: no torch on the node's side.

A *stage* is a range of layers in a worker's memory. A *sequence* is opened on it for all of its layers or for some of
them, and is told its sampling then. A *batch* is the next rows of several sequences in one buffer; each slot of it
wants no token, one, or one per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from node.wire.frames import Buffer, Sampling, Want
from node.wire.models import Dtype, Quantise
from node.wire.records import Hardware

BackendName = Literal["ort", "llamacpp", "torch", "mlx", "sglang"]
"""What can compute. `backend.BACKENDS` has a row for each that this version knows how to run."""
DeviceChoice = Literal["auto", "cpu", "cuda", "xpu", "mps"]
"""`auto` takes cuda (ROCm too), then xpu, then mps, then cpu."""

BATCHES_IN_FLIGHT = 2
"""Between node and worker: one that runs, and one that lies ready when it ends."""

BLOCK_TOKENS = 64
"""Of which keys and values are kept for other sequences that begin with them."""

PROBE_BUDGET_S = 0.3
"""For the steps by which a stage is timed, when it is loaded and while it is idle; one is always run."""
PROBE_MOST_STEPS = 8
"""Enough to see past others' disturbance; a small model needs no more."""
PROBE_SLOW_STEP_S = 1.0
"""A first step this slow spends its time on layers, not on warming up: it is the measurement."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What can run layers here."""

    name: BackendName
    version: str
    """Of the libraries that compute: `torch 2.13.0, transformers 5.23.0`."""
    dtypes: tuple[Dtype, ...]
    """Of the rows that its stages can take and give."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Layers [start, end) of one model, to be held by one worker."""

    model_folder: str
    """Holds config.json and the weights, as *.safetensors or *.gguf."""
    start: int
    end: int
    dtype: Dtype
    kv_bytes: int
    """Memory that all sequences' keys and values may take while the worker holds these layers alone. What else it holds
    takes from it; stages over the same tensors share it."""
    backend: BackendName | Literal["auto"] = "auto"
    """What is to run them; `auto`: what suits device and weights best of what is installed."""
    quantise: Quantise = "auto"


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What a loaded stage turned out to be."""

    weight_bytes: int
    kv_bytes_per_token: int
    """For all of its layers."""
    kv_tokens: int
    """Tokens over all of its layers that `kv_bytes` has room for."""
    load_s: float
    hidden_size: int
    """Width of the rows that the stage takes and gives."""
    dtype: Dtype
    """Of the rows that the stage gives."""
    layer_ms: float | None = None
    """One layer's part of a decode step, the LM head left out, timed when the stage was loaded."""
    head_ms: float | None = None
    """LM head and sampling of a decode step; None where the stage does not hold the model's last layer."""
    max_batch_rows: int = 8192
    """Rows of all slots of one batch together."""
    max_sequences: int = 256
    """Open at a time; as many slots may a batch have."""
    block_tokens: int = 1
    """KV room is given out in multiples of this."""
    can_rewind: bool = True
    """Whether `rewind` is served. Not where a layer keeps a state or a window instead of all its keys and values."""
    keeps_prefixes: bool = False
    """Whether it keeps keys and values of sequences that are closed, for others that begin with the same tokens."""
    can_narrow: bool = True
    """Whether a sequence may be opened on some of the layers only."""
    backend: BackendName = "torch"
    """What runs it."""
    quantisation: str = ""
    """How the weights lie in memory, for people: `float32`, `Q4_K, Q6_K`, `int8`."""
    drift_class: str = ""
    """Stages with equal ones give equal bits for equal rows, on one type of processor: backend, arithmetic, kernels."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One sequence's part of a batch: a prefill chunk, a decode step, or a draft to verify."""

    sequence: str
    position: int
    """Index of its first row in the sequence; equals the number of tokens in the sequence's KV."""
    count: int
    """Rows; at least 1."""
    want: Want = "nothing"
    """Tokens only from a sequence that ends with the model's last layer and was opened with a sampling."""
    replay: bool = False
    """Its rows were decode steps once and are to be computed as such, one after another: kernels for one row and for
    several end in different last bits, which would make a rebuilt cache another one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The next rows of several sequences, all opened for the same [start, end)."""

    slots: tuple[Slot, ...]
    """Each sequence once."""
    data: Buffer
    """The rows of all slots in their order. Sequences that begin with the model's first layer: int32 token ids (rows,).
    Others: hidden states (rows, hidden_size) in `dtype`."""
    dtype: Dtype | None
    """None: `data` holds token ids."""

    @property
    def rows(self) -> int:
        """Of all slots."""
        return sum(slot.count for slot in self.slots)


@dataclass(frozen=True, slots=True)
class SlotResult:
    """What a slot gave beside its rows."""

    tokens: tuple[int, ...] = ()
    """As many as the slot wanted."""
    problem: str = ""
    """Why its sequence cannot go on. It ends that sequence, which is to be closed, and not its neighbours."""
    out_of_kv: bool = False
    """There is no room for the slot's rows now. None of them ran, nothing moved, and `problem` is empty: the sequence
    may be tried again when there is room, or closed to make some for others."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch gave."""

    data: Buffer
    """Hidden states (rows, hidden_size) in the stage's dtype, slot by slot; zeros for those with a problem.
    Empty where the sequences end with the model's last layer."""
    slots: tuple[SlotResult, ...]
    """One for each slot, in order."""
    compute_ms: float
    """Inside the backend."""
    head_ms: float = 0.0
    """Of that, LM head and sampling."""
    free_kv_tokens: int = 0
    """That a sequence over all of the stage's layers could still reserve."""


class Stage(Protocol):
    """A loaded range. Up to `BATCHES_IN_FLIGHT` calls of `run` are under way; batches run in the order of the calls."""

    info: StageInfo

    async def open(
        self,
        sequence: str,
        start: int,
        end: int,
        sampling: Sampling | None,
        kv_tokens: int,
        prefix: tuple[bytes, ...] = (),
    ) -> int:
        """Begin a sequence on layers [start, end) of the stage, where there is KV room for `kv_tokens` tokens.

        More is taken as it grows; a slot for which there is none says so (`SlotResult.out_of_kv`).

        `prefix` names the blocks of BLOCK_TOKENS tokens that it begins with, each with all before it: equal names mean
        equal keys and values. Returned is how many tokens of them the sequence holds by now, where its first slot
        begins; 0 where nothing was kept.

        Cancelled while it waits, it leaves no sequence behind.

        Raises:
            OutOfKV: there is not that much room.
            TooLong: the model cannot be served in parts with so many tokens, here or anywhere.
            EngineError: layers outside the stage, a name that is open, too many sequences.
            WorkerDied: the worker is gone.
        """

    async def run(self, batch: Batch) -> BatchResult:
        """Run a batch. Where one sequence is at fault, its slot's `problem` says so and the others go on.

        Cancelled while it waits, it leaves the batch done or not: close its sequences.

        Raises:
            EngineError: the batch as a whole cannot be run; no sequence has moved.
            WorkerDied: the worker is gone, and with it every sequence.
            WorkerHung: the same, since it gave no answer for too long and was killed.
        """

    async def rewind(self, sequence: str, position: int) -> None:
        """Forget a sequence's keys and values at `position` and after it: the next slot begins there.

        A sequence that had a problem in a step can be taken up again from before it.

        Raises:
            EngineError: an unknown sequence, a position beyond its end, or a stage that cannot (`info.can_rewind`).
            WorkerDied: the worker is gone.
        """

    async def close(self, sequence: str, keep: tuple[bytes, ...] = ()) -> None:
        """Forget a sequence. Harmless when it is unknown or the worker is gone; never raises.

        Its keys and values may be kept under the names of the blocks that they begin with, while nobody needs the room:
        `free_kv_tokens` counts what is kept as free.
        """

    async def drop(self) -> None:
        """Drop the weights and every sequence. Harmless when repeated or the worker is gone; never raises."""


GoesOn = Callable[[float], object]
"""Told the share of a range's bytes that is there, from 0 to 1."""


class Engine(Protocol):
    """A worker that can hold stages: usually one, two while a plan changes."""

    hardware: Hardware
    """Measured when the worker started."""
    backends: tuple[BackendInfo, ...]
    """What can run layers here, the one that suits the device best first."""

    async def load(self, spec: StageSpec, goes_on: GoesOn = lambda share: None) -> Stage:
        """Load a range. Tensors that another stage of this worker already holds are shared, not read again. `goes_on`
        is told some times a second how much of it is there.

        Raises:
            LoadFailed: files missing or damaged, or too little memory.
            WorkerDied: the worker ended while loading.
            WorkerHung: it made no progress for too long and was killed.
        """

    async def set_threads(self, threads: int) -> None:
        """Use that many processor threads from the next batch on."""
