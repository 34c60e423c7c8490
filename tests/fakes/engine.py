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

from node.engine.base import (
    BATCHES_IN_FLIGHT,
    BLOCK_TOKENS,
    BackendInfo,
    Batch,
    BatchResult,
    GoesOn,
    Slot,
    SlotResult,
    StageInfo,
    StageSpec,
)
from node.errors import EngineError, LoadFailed, OutOfKV, WorkerDied
from node.wire.frames import Buffer, Sampling
from node.wire.layer_range import layer_range
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

    room: int
    """Tokens that it has KV room for."""
    start: int
    end: int
    sampling: Sampling | None
    past: list[list[int]]
    """Per layer: the sum of what has entered it, position by position."""
    broken: bool = False

    @property
    def position(self) -> int:
        return len(self.past[0])


@dataclass(slots=True)
class FakeStage:
    """Layers [start, end) of the toy model."""

    engine: FakeEngine
    spec: StageSpec
    info: StageInfo
    sequences: dict[str, ToySequence] = field(default_factory=dict)
    kept: dict[tuple[int, int, bytes], list[list[int]]] = field(default_factory=dict)
    """By layers and name of a block: what has entered each layer of a sequence that begins so. Oldest first."""
    batches: list[Batch] = field(default_factory=list)
    """Every batch that was asked for, for assertions."""
    closed: bool = False

    @property
    def steps(self) -> list[Slot]:
        """Every slot of them."""
        return [slot for batch in self.batches for slot in batch.slots]

    async def open(
        self,
        sequence: str,
        start: int,
        end: int,
        sampling: Sampling | None,
        kv_tokens: int,
        prefix: tuple[bytes, ...] = (),
    ) -> int:
        await self.engine._enter(self)
        await trio.sleep(self.engine.open_s)
        if not self.spec.start <= start < end <= self.spec.end:
            raise EngineError(f"layers [{start}, {end}) are not in [{self.spec.start}, {self.spec.end})")
        if sequence in self.sequences:
            raise EngineError(f"sequence {sequence} is open already")
        room = self._in_blocks(kv_tokens)
        if room * (end - start) > (free := self._free_layer_tokens):
            raise OutOfKV(kv_tokens, free // (end - start))
        opened = ToySequence(room, start, end, sampling, [[] for _ in range(start, end)])
        self.sequences[sequence] = opened
        for count in range(len(prefix), 0, -1):
            if (past := self.kept.get((start, end, prefix[count - 1]))) is not None:
                opened.past = [list(layer[: count * BLOCK_TOKENS]) for layer in past]
                break
        self._give_up_kept()
        return opened.position

    def _give_up_kept(self) -> None:
        """What is kept of former sequences, where those that are open need the room."""
        while self.kept_layer_tokens > self._free_layer_tokens:
            gone = next(iter(self.kept.values()))
            self.kept = {key: past for key, past in self.kept.items() if past is not gone}

    @property
    def kept_layer_tokens(self) -> int:
        """That former sequences take, of one token and one layer each."""
        return sum(len(layer) for past in {id(past): past for past in self.kept.values()}.values() for layer in past)

    @property
    def _free_layer_tokens(self) -> int:
        """KV room, of one token and one layer each."""
        taken = sum(each.room * (each.end - each.start) for each in self.sequences.values())
        return self.info.kv_tokens * (self.spec.end - self.spec.start) - taken

    def _in_blocks(self, tokens: int) -> int:
        return -(-tokens // self.info.block_tokens) * self.info.block_tokens

    def _grow(self, sequence: ToySequence, tokens: int) -> bool:
        more = self._in_blocks(tokens) - sequence.room
        if more > 0 and more * (sequence.end - sequence.start) > self._free_layer_tokens:
            return False
        sequence.room += max(0, more)
        self._give_up_kept()
        return True

    async def run(self, batch: Batch) -> BatchResult:
        self.engine.in_flight += 1
        self.engine.most_in_flight = max(self.engine.most_in_flight, self.engine.in_flight)
        if self.engine.in_flight > BATCHES_IN_FLIGHT:
            raise AssertionError(f"{self.engine.in_flight} batches at a time: the caller must queue")
        try:
            async with self.engine.turn:
                await self.engine._enter(self)
                self.batches.append(batch)
                started_s = trio.current_time()
                await trio.sleep(self.engine.step_s + self.engine.row_s * batch.rows)
                await self.engine._enter(self)
                return self._compute(batch, started_s)
        finally:
            self.engine.in_flight -= 1

    async def rewind(self, sequence: str, position: int) -> None:
        await self.engine._enter(self)
        known = self.sequences.get(sequence)
        if known is None or position > known.position:
            raise EngineError(f"sequence {sequence} cannot be rewound to {position}")
        for past in known.past:
            del past[position:]
        known.broken = False

    async def close(self, sequence: str, keep: tuple[bytes, ...] = ()) -> None:
        known = self.sequences.pop(sequence, None)  # first: it counts even where the caller is being cancelled
        if known is not None and not known.broken:
            names = keep[: known.position // BLOCK_TOKENS]
            past = [layer[: len(names) * BLOCK_TOKENS] for layer in known.past]
            self.kept |= {(known.start, known.end, name): past for name in names}
            self._give_up_kept()
        await trio.lowlevel.checkpoint()

    async def drop(self) -> None:
        self.closed = True
        self.sequences.clear()
        if self in self.engine.stages:
            self.engine.stages.remove(self)
        await trio.lowlevel.checkpoint()

    def _compute(self, batch: Batch, started_s: float) -> BatchResult:
        sequences = [self.sequences.get(slot.sequence) for slot in batch.slots]
        ranges = {(each.start, each.end) for each in sequences if each is not None}
        if len(ranges) > 1:
            raise EngineError(f"a batch over unequal layers: {ranges}")
        start, end = next(iter(ranges), (self.spec.start, self.spec.end))
        inputs = self._rows(batch, first=start == 0)
        outputs: list[int] = []
        results: list[SlotResult] = []
        for slot, sequence in zip(batch.slots, sequences, strict=True):
            rows, inputs = inputs[: slot.count], inputs[slot.count :]
            result, out = self._slot(slot, sequence, rows)
            results.append(result)
            outputs += out
        last = end == self.engine.layers
        compute_ms = 1e3 * (trio.current_time() - started_s)
        head_ms = HEAD_SHARE * compute_ms if any(result.tokens for result in results) else 0.0
        data = b"" if last else pack_rows(outputs, self.info.dtype)
        free_tokens = self._free_layer_tokens // (self.spec.end - self.spec.start)
        return BatchResult(data, tuple(results), compute_ms, head_ms, free_tokens)

    def _slot(self, slot: Slot, sequence: ToySequence | None, rows: list[int]) -> tuple[SlotResult, list[int]]:
        problem = ""
        if sequence is None:
            problem = f"sequence {slot.sequence} is unknown"
        elif sequence.broken:
            problem = "it had a problem before"
        elif slot.position != sequence.position:
            problem = f"step at position {slot.position}, the cache holds {sequence.position} tokens"
        elif any(row < 0 for row in rows):
            problem = "rows that no stage of the toy model gave"
        elif slot.want != "nothing" and (sequence.sampling is None or sequence.end != self.engine.layers):
            problem = "tokens asked of a sequence that does not end the model"
        elif self.engine.problems:
            problem = self.engine.problems.pop()
        elif not self._grow(sequence, slot.position + slot.count):
            self.engine.out_of_kv += 1
            return SlotResult(out_of_kv=True), [0] * slot.count
        if problem or sequence is None:
            if sequence is not None:
                sequence.broken = True
            return SlotResult(problem=problem), [0] * slot.count
        for index, layer in enumerate(range(sequence.start, sequence.end)):
            for at, entered in enumerate(rows):
                past = sequence.past[index][-1] if sequence.past[index] else 0
                sequence.past[index].append(past + entered)
                rows[at] = layer_output(layer, entered, past)
        if slot.want == "nothing":
            return SlotResult(), rows
        assert sequence.sampling is not None
        wanted = rows if slot.want == "each" else rows[-1:]
        first = sequence.position - len(wanted) + 1
        return SlotResult(tuple(token_from(row, first + at, sequence.sampling) for at, row in enumerate(wanted))), rows

    def _rows(self, batch: Batch, *, first: bool) -> list[int]:
        """Numbers of all rows; -1 for one that cannot be."""
        if (batch.dtype is None) != first:
            raise EngineError("token ids belong to the first layer, hidden states to the others")
        if batch.dtype is not None:
            return unpack_rows(batch.data, batch.rows, batch.dtype)
        ids = np.frombuffer(batch.data, np.int32)
        if len(ids) != batch.rows:
            raise EngineError(f"{len(ids)} token ids for {batch.rows} positions")
        return [int(token) % MODULUS if 0 <= token < VOCAB else -1 for token in ids]


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
        self.backends = (BackendInfo("torch", "toy 1", ("float32", "bfloat16", "float16")),)
        self.row_s = self.open_s = 0.0
        """What each row adds to a step, and what opening a sequence takes."""
        self.turn = trio.Lock()
        self.in_flight = self.most_in_flight = 0
        """Batches between caller and worker, now and at most."""
        self.block_tokens = 1
        """In which stages that are loaded from now on give out KV room."""
        self.out_of_kv = 0
        """Slots for which there was no KV room."""
        self.problems: list[str] = []
        """What the next slots have as problem."""
        self._refusals: list[EngineError] = []
        self.dies_loading = False
        """The next load kills it, as where memory runs out."""

    @property
    def death(self) -> WorkerDied | None:
        return WorkerDied(-9, "killed on demand") if self.died.is_set() else None

    @property
    def live_sessions(self) -> int:
        """Sequences over all stages; 0 when everything has been freed."""
        return sum(len(stage.sequences) for stage in self.stages)

    async def load(self, spec: StageSpec, goes_on: GoesOn = lambda share: None) -> FakeStage:
        if self.dies_loading:
            self.die()
        await self._enter(None)
        self.loads.append(spec)
        if not 0 <= spec.start < spec.end <= self.layers:
            raise LoadFailed(layer_range(spec.start, spec.end), f"the model has {self.layers} layers")
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
            quantisation="whole numbers",
            drift_class="toy",
            block_tokens=self.block_tokens,
            keeps_prefixes=True,
        )
        goes_on(1.0)
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
    """Hidden states (count, WIDTH) back to numbers; -1 for what `pack_rows` cannot have made."""
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
    sound = (rows == rows[:, :1]).all(axis=1) & (rows[:, 0] == np.floor(rows[:, 0])) & (rows[:, 0] >= 0)
    return [int(row[0]) if good else -1 for row, good in zip(rows, sound, strict=True)]
