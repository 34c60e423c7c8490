"""An engine without tensors libraries or processes: a toy model with known output, for tests of what lies above.

The toy model. A token `t` enters as the number `t % MODULUS`. Layer `l` (its global index) turns the number `h` of one
position into

    (3 * h + l + 1 + sum of what entered this layer at the sequence's earlier positions) % MODULUS

and the last stage answers with `(7 * h + position of the new token + seed) % VOCAB`; the seed counts only where the
temperature is not 0. So a skipped, repeated or exchanged layer, a lost, repeated or foreign position, and a stage that
serves a range other than it says: each changes the tokens. All numbers stay below 251 and are exact in every dtype.

A test computes what must come out with `expected_tokens(prompt, layers, count)`, whatever the split:

    engine = FakeEngine(layers=6)
    stage = await engine.load(StageSpec("toy", 0, 3, "float32", kv_bytes=1 << 20))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import trio

from node.engine.base import Buffer, StageInfo, StageSpec, Step, StepResult
from node.errors import EngineError, LoadFailed, OutOfKV, WorkerDied
from node.wire.frames import Sampling
from node.wire.models import Dtype
from node.wire.records import Hardware

MODULUS = 251
"""Whole numbers below 256 are exact even in bfloat16."""
VOCAB = 251
WIDTH = 4
"""Hidden size. A row holds the same number four times; unequal ones are refused as garbage."""
KV_BYTES_PER_TOKEN_LAYER = 8
LAYER_MS, HEAD_MS = 0.25, 0.5
"""What a stage says that it measured when it was loaded."""
HEAD_SHARE = 0.25
"""Of a step's time, where it ends in a token."""


def layer_output(layer: int, entered: int, past_sum: int) -> int:
    """What layer `layer` makes of the number `entered`, given the sum of what entered it before."""
    return (3 * entered + layer + 1 + past_sum) % MODULUS


def token_from(hidden: int, position: int, sampling: Sampling) -> int:
    """The last stage's answer; `position` is the new token's own index in the sequence."""
    return (7 * hidden + position + (sampling.seed if sampling.temperature > 0 else 0)) % VOCAB


def expected_tokens(
    prompt: Sequence[int], layers: int, count: int, *, sampling: Sampling | None = None, stop: Sequence[int] = ()
) -> list[int]:
    """The toy model's answer of at most `count` tokens; ends with the first of `stop`, which is included."""
    past = [0] * layers
    sequence, answer = list(prompt), list[int]()
    for position in range(len(prompt) + count):
        hidden = sequence[position] % MODULUS
        for layer in range(layers):
            entered, hidden = hidden, layer_output(layer, hidden, past[layer])
            past[layer] += entered
        if position >= len(prompt) - 1:
            answer.append(token_from(hidden, position + 1, sampling or Sampling()))
            sequence.append(answer[-1])
            if len(answer) == count or answer[-1] in stop:
                break
    return answer


@dataclass(slots=True)
class ToySequence:
    """One sequence's state in one stage."""

    reserved: int
    past: list[int]
    """Per layer of the stage: the sum of what entered."""
    position: int = 0


@dataclass(slots=True)
class FakeStage:
    """Layers [start, end) of the toy model."""

    engine: FakeEngine
    spec: StageSpec
    info: StageInfo
    sequences: dict[str, ToySequence] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    """Every step that was asked for, for assertions."""
    closed: bool = False
    busy: bool = False

    async def reserve(self, session: str, tokens: int) -> None:
        await self.engine._enter(self)
        free = self.info.kv_tokens - sum(sequence.reserved for sequence in self.sequences.values())
        if session in self.sequences:
            raise EngineError(f"session {session} has its room already")
        if tokens > free:
            raise OutOfKV(tokens, free)
        self.sequences[session] = ToySequence(tokens, [0] * (self.spec.end - self.spec.start))

    async def run(self, step: Step) -> StepResult:
        if self.busy:
            raise AssertionError("two steps at a time in one stage: the caller must queue")
        self.busy = True
        try:
            await self.engine._enter(self)
            self.steps.append(step)
            started_s = trio.current_time()
            await trio.sleep(self.engine.step_s)
            await self.engine._enter(self)
            return self._compute(step, started_s)
        finally:
            self.busy = False

    async def free(self, session: str) -> None:
        self.sequences.pop(session, None)  # first: it counts even where the caller is being cancelled
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        if self.engine.close_error is not None:
            error, self.engine.close_error = self.engine.close_error, None
            raise error
        self.closed = True
        self.sequences.clear()
        if self in self.engine.stages:
            self.engine.stages.remove(self)
        await trio.lowlevel.checkpoint()

    def _compute(self, step: Step, started_s: float) -> StepResult:
        sequence = self.sequences.get(step.session)
        if sequence is None:
            raise EngineError(f"session {step.session} is unknown")
        if step.position != sequence.position:
            raise EngineError(f"step at position {step.position}, the cache holds {sequence.position} tokens")
        if step.position + step.count > sequence.reserved:
            raise EngineError(f"{step.position + step.count} tokens, {sequence.reserved} reserved")
        rows = self._rows(step)
        for layer in range(self.spec.start, self.spec.end):
            for index, entered in enumerate(rows):
                rows[index] = layer_output(layer, entered, sequence.past[layer - self.spec.start])
                sequence.past[layer - self.spec.start] += entered
        sequence.position += step.count
        last = self.spec.end == self.engine.layers
        if step.sampling is not None and not last:
            raise EngineError("sampling asked of a stage that is not the last")
        token = token_from(rows[-1], sequence.position, step.sampling) if step.sampling is not None else None
        data = b"" if last else pack_rows(rows, self.info.dtype)
        compute_ms = 1e3 * (trio.current_time() - started_s)
        return StepResult(data, token, compute_ms, HEAD_SHARE * compute_ms if token is not None else 0.0)

    def _rows(self, step: Step) -> list[int]:
        if (step.dtype is None) != (self.spec.start == 0):
            raise EngineError("token ids belong to the first stage, hidden states to the others")
        if step.dtype is not None:
            return unpack_rows(step.data, step.count, step.dtype)
        ids = np.frombuffer(step.data, np.int32)
        if len(ids) != step.count or (ids < 0).any() or (ids >= VOCAB).any():
            raise EngineError(f"{len(ids)} token ids for {step.count} positions, each must be below {VOCAB}")
        return [int(token) % MODULUS for token in ids]


class FakeEngine:
    """A worker that holds stages of the toy model. `die()` and `refuse_next()` make it fail on demand."""

    def __init__(self, layers: int = 6, *, memory_bytes: int = 1 << 30, step_s: float = 0.0) -> None:
        self.layers = layers
        self.step_s = step_s
        """A step's duration on trio's clock."""
        self.stages: list[FakeStage] = []
        self.loads: list[StageSpec] = []
        """Every load that was asked for."""
        self.threads: int | None = None
        self.died = trio.Event()
        self.hardware = Hardware("cpu", "toy", memory_bytes, 1e9, 1e9, 1)
        self.close_error: EngineError | None = None
        """What the next stage that is closed raises instead."""
        self._refusals: list[EngineError] = []
        self.dies_loading = False
        """The next load kills it, as where memory runs out."""

    @property
    def live_sessions(self) -> int:
        """Sequences over all stages; 0 when everything has been freed."""
        return sum(len(stage.sequences) for stage in self.stages)

    async def load(self, spec: StageSpec) -> FakeStage:
        if self.dies_loading:
            self.die()
        await self._enter(None)
        self.loads.append(spec)
        if not 0 <= spec.start < spec.end <= self.layers:
            raise LoadFailed(f"[{spec.start}, {spec.end})", f"the model has {self.layers} layers")
        per_token = KV_BYTES_PER_TOKEN_LAYER * (spec.end - spec.start)
        info = StageInfo(
            weight_bytes=100 * (spec.end - spec.start),
            kv_bytes_per_token=per_token,
            kv_tokens=spec.kv_bytes // per_token,
            load_s=0.0,
            hidden_size=WIDTH,
            dtype=spec.dtype,
            layer_ms=LAYER_MS,
            head_ms=HEAD_MS if spec.end == self.layers else None,
        )
        stage = FakeStage(self, spec, info)
        self.stages.append(stage)
        return stage

    async def set_threads(self, threads: int) -> None:
        await self._enter(None)
        self.threads = threads

    def die(self) -> None:
        """From now on every call, running ones included, raises `WorkerDied`; every sequence is lost."""
        for stage in self.stages:
            stage.sequences.clear()
        self.died.set()

    def refuse_next(self, error: EngineError | None = None) -> None:
        """The next call raises this and the engine lives on."""
        self._refusals.append(error or EngineError("refused on demand"))

    async def _enter(self, stage: FakeStage | None) -> None:
        await trio.lowlevel.checkpoint()
        if self.died.is_set():
            raise WorkerDied(-9, "killed on demand")
        if stage is not None and stage.closed:
            raise EngineError("the stage is closed")
        if self._refusals:
            raise self._refusals.pop()


def pack_rows(rows: Sequence[int], dtype: Dtype) -> bytes:
    """Numbers to hidden states (count, WIDTH) in little-endian `dtype`."""
    states = np.repeat(np.array(rows, np.float32)[:, None], WIDTH, axis=1)
    match dtype:
        case "float32":
            return states.tobytes()
        case "float16":
            return states.astype(np.float16).tobytes()
        case "bfloat16":  # the upper half of a float32, exact below 256
            return (states.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def unpack_rows(data: Buffer, count: int, dtype: Dtype) -> list[int]:
    """Hidden states (count, WIDTH) back to numbers; refuses anything that `pack_rows` cannot have made."""
    expected_bytes = count * WIDTH * (4 if dtype == "float32" else 2)
    if len(data) != expected_bytes:
        raise EngineError(f"{len(data)} bytes of hidden states, {expected_bytes} expected")
    match dtype:
        case "float32":
            states = np.frombuffer(data, np.float32)
        case "float16":
            states = np.frombuffer(data, np.float16).astype(np.float32)
        case "bfloat16":
            states = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    rows = states.reshape(count, WIDTH)
    if not ((rows == rows[:, :1]).all() and (rows == np.floor(rows)).all() and (rows >= 0).all()):
        raise EngineError("hidden states that no stage of the toy model gave")
    return [int(row) for row in rows[:, 0]]
