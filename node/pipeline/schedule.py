"""Which steps the engine runs next, together. Pure: what waits and what runs go in, a batch comes out.

- **Decode first.** Steps of answers that stream go before prompt chunks, oldest first, as many as there are: rows that
  are ready together run together, and none waits for another that is not here.
- **All stages at work.** Of the answers that stream through several stages a batch takes this stage's share: the others
  are to be under way in the other stages meanwhile. One batch of all of them would have each stage wait for the others.
- **A prompt is never starved, and delays no answer for long.** Its rows go beside a batch of decode steps when those
  have had as much time as they will take, and are no more than take as long as `CHUNK_STEPS` of such batches; a chunk
  that is longer is cut. Until the times are known, that is after `DECODES_PER_CHUNK` batches, and whole.
- **Fair.** Of one sequence one step is under way, in order; of several prompts the one that has waited longest since
  its last rows goes next, and short ones go together.
- **Two in flight.** Beside a batch that runs only one of more sequences, or a whole share, may lie ready: half a batch
  sent early would have to be run as half a batch, and what streams would fall into two groups for ever.
- **Preemption.** Room in the KV cache is taken from sequences whose chain is broken first, then from who has more than
  a fair share, then from the newest (`seats.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

DECODES_PER_CHUNK = 4
"""Batches without a chunk while one waits, at most."""

CHUNK_STEPS = 4.0
"""An answer that streams waits for prompts no longer than for so many of its own steps."""

LEAST_ROWS = 16
"""Of prompts in a batch: fewer cost a stage as much as a decode step does, whatever their number."""

PROMPT_ROWS = 128
"""Of prompts in a batch where nothing streams, but for a single longer chunk: who came first is not to wait for all."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A step that waits for the engine."""

    sequence: Hashable
    lot: Hashable
    """What can run in one batch: stage, layers, kind of rows."""
    rows: int
    decode: bool
    """Of an answer that streams; else a prompt's chunk."""
    number: int
    """In the order of arrival."""
    served: int = 0
    """`number` of the step of its sequence that ran last; 0: none did."""
    replay: bool = False
    """Its rows are computed one after another."""
    whole: bool = False
    """It cannot be cut."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one batch may be."""

    rows: int
    sequences: int
    decodes: int | None = None
    """Steps of answers that stream: this stage's share of them. None: all."""
    streams: int = 0
    """Answers that stream through here, wherever they are now."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How long things take here; None where it is not known yet."""

    decode_ms: float | None = None
    """A batch of decode steps, as they are now."""
    row_ms: float | None = None
    """One row of a prompt."""


UNKNOWN = Rates()


@dataclass(frozen=True, slots=True)
class Running:
    """What the engine has now."""

    sequences: frozenset[Hashable] = frozenset()
    batches: int = 0


IDLE = Running()


@dataclass(frozen=True, slots=True)
class Turn:
    """What the rules remember from one batch to the next."""

    without_chunk: int = 0
    """Batches since a chunk ran, while one waited."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A batch, and what to remember of it. No steps: nothing is to be sent now.

    A prompt's step may have fewer rows than it had: the rest of them wait.
    """

    steps: tuple[Ready, ...]
    turn: Turn


def next_batch(
    waiting: Iterable[Ready],
    running: Running,
    budget_of: dict[Hashable, Budget],
    turn: Turn,
    in_flight: int,
    rates: Rates = UNKNOWN,
) -> Chosen:
    """The next batch; of each sequence only its first waiting step, and only while none of it runs.

    `budget_of` by lot; `in_flight` is how many batches the engine may have at a time.
    """
    ready = _heads(waiting, running.sequences)
    if running.batches >= in_flight or not ready:
        return Chosen((), turn)
    decodes = sorted((step for step in ready if step.decode), key=lambda step: step.number)
    chunks = sorted((step for step in ready if not step.decode), key=lambda step: (step.served, step.number))
    prompts = _prompts(chunks, budget_of, rates, beside_decodes=bool(decodes))
    if decodes and not _is_owed(prompts, turn, rates):
        prompts = ()
    budget = budget_of[(prompts or decodes)[0].lot]
    share = budget.sequences if budget.decodes is None else budget.decodes
    steps = _within(
        [step for step in decodes if step.lot == (prompts or decodes)[0].lot],
        rows=budget.rows - sum(step.rows for step in prompts),
        sequences=min(share, budget.sequences - len(prompts)),
    )
    chosen = (*steps, *prompts)
    if running.batches:
        lies_ready = len(chosen) > len(running.sequences) or len(steps) == budget.decodes
        if not (lies_ready if steps else budget.streams == 0):  # a prompt is run beside what streams, if anything does
            return Chosen((), turn)
    return Chosen(chosen, Turn(0 if prompts or not chunks else turn.without_chunk + 1))


def _heads(waiting: Iterable[Ready], busy: Collection[Hashable]) -> list[Ready]:
    """Of each sequence that is not busy, its step that came first."""
    first: dict[Hashable, Ready] = {}
    for step in waiting:
        known = first.get(step.sequence)
        if step.sequence not in busy and (known is None or step.number < known.number):
            first[step.sequence] = step
    return list(first.values())


def _within(steps: Sequence[Ready], rows: int, sequences: int) -> tuple[Ready, ...]:
    """As many of the first steps as there is room for."""
    chosen: list[Ready] = []
    for step in steps:
        rows -= step.rows
        if len(chosen) >= sequences or rows < 0:
            break
        chosen.append(step)
    return tuple(chosen)


def _prompts(
    chunks: Sequence[Ready], budget_of: dict[Hashable, Budget], rates: Rates, *, beside_decodes: bool
) -> tuple[Ready, ...]:
    """The prompts' rows that go next, in the order of `chunks`."""
    if not chunks:
        return ()
    first, budget = chunks[0], budget_of[chunks[0].lot]
    slower = 1.0
    """How much longer a row takes that is computed alone."""
    left = float(max(PROMPT_ROWS, first.rows))
    if rates.decode_ms is not None and rates.row_ms is not None and rates.row_ms > 0:
        slower = max(1.0, rates.decode_ms / rates.row_ms)
        if beside_decodes or budget.streams:
            left = max(LEAST_ROWS, CHUNK_STEPS * slower)
    left = min(left, budget.rows)
    chosen: list[Ready] = []
    for step in chunks:
        if step.lot != first.lot or len(chosen) == budget.sequences:
            continue
        cost = slower if step.replay else 1.0
        rows = _cut(step, max(0, int(left / cost)))
        if not rows and not chosen:  # the first goes on in any case
            rows = 1 if step.replay else _cut(step, step.rows if step.whole else LEAST_ROWS)
        if not rows:
            break
        chosen.append(replace(step, rows=rows))
        left -= rows * cost
    return tuple(chosen)


def _cut(step: Ready, most: int) -> int:
    """How many of its rows to run where there is time for `most`: neither one alone nor all but one, since kernels for
    one row end in other last bits; 0, where it cannot be cut so."""
    if step.rows <= most:
        return step.rows
    if step.whole:
        return 0
    if step.replay:
        return most
    rows = most - 1 if step.rows == most + 1 else most
    return rows if rows > 1 else 0


def _is_owed(prompts: Sequence[Ready], turn: Turn, rates: Rates) -> bool:
    """Whether answers that stream have had as much time as these rows will take."""
    if not prompts or turn.without_chunk >= DECODES_PER_CHUNK:
        return bool(prompts)
    if rates.decode_ms is None or rates.row_ms is None:
        return False
    rows_ms = sum(step.rows * (rates.decode_ms if step.replay else rates.row_ms) for step in prompts)
    return turn.without_chunk * rates.decode_ms >= rows_ms
