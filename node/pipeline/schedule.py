"""Which steps the engine runs next, together. Pure: what waits and what runs go in, a batch comes out.

- **Decode first.** Steps of answers that stream go before prompt chunks, oldest first, as many as there are: rows that
  are ready together run together, and none waits for another that is not here.
- **A prompt is never starved.** After `DECODES_PER_CHUNK` batches without one, a chunk that waits goes beside the next.
  An answer that streams is slowed by a quarter of a chunk per token at most, and prompts go on however many decode.
- **Fair.** Of one sequence one step is under way, in order; of several prompts the one that has waited longest since
  its last chunk goes next.
- **Two in flight.** Beside a batch that runs only one of more sequences may lie ready: half a batch sent early would
  have to be run as half a batch, and what streams would fall into two groups for ever.
- **Preemption.** Room in the KV cache is taken from sequences whose chain is broken first, then from who has more than
  a fair share (`seats.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

DECODES_PER_CHUNK = 4
"""Batches without a chunk while one waits."""


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


@dataclass(frozen=True, slots=True)
class Budget:
    """What one batch may be."""

    rows: int
    sequences: int


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
    """A batch, and what to remember of it. No steps: nothing is to be sent now."""

    steps: tuple[Ready, ...]
    turn: Turn


def next_batch(
    waiting: Iterable[Ready], running: Running, budget_of: dict[Hashable, Budget], turn: Turn, in_flight: int
) -> Chosen:
    """The next batch; of each sequence only its first waiting step, and only while none of it runs.

    `budget_of` by lot; `in_flight` is how many batches the engine may have at a time.
    """
    if running.batches >= in_flight:
        return Chosen((), turn)
    ready = _heads(waiting, running.sequences)
    decodes = sorted((step for step in ready if step.decode), key=lambda step: step.number)
    chunks = sorted((step for step in ready if not step.decode), key=lambda step: (step.served, step.number))
    owed = bool(chunks) and turn.without_chunk >= DECODES_PER_CHUNK
    if not ready or (running.batches and not decodes):  # a chunk is run beside nothing but what is chosen with it
        return Chosen((), turn)
    first = chunks[0] if owed or not decodes else decodes[0]
    budget = budget_of[first.lot]
    room = replace(budget, rows=budget.rows - (first.rows if not first.decode else 0))
    steps = _within([step for step in decodes if step.lot == first.lot], room, 0 if first.decode else 1)
    if not first.decode:
        steps = (*steps, first)
    if running.batches and len(steps) <= len(running.sequences):
        return Chosen((), turn)
    with_chunk = not first.decode
    left = any(step is not first for step in chunks) if with_chunk else bool(chunks)
    return Chosen(steps, Turn(0 if with_chunk or not left else turn.without_chunk + 1))


def _heads(waiting: Iterable[Ready], busy: Collection[Hashable]) -> list[Ready]:
    """Of each sequence that is not busy, its step that came first."""
    first: dict[Hashable, Ready] = {}
    for step in waiting:
        known = first.get(step.sequence)
        if step.sequence not in busy and (known is None or step.number < known.number):
            first[step.sequence] = step
    return list(first.values())


def _within(steps: Sequence[Ready], budget: Budget, taken: int) -> tuple[Ready, ...]:
    """As many of the first steps as a batch may have beside `taken` others."""
    chosen: list[Ready] = []
    rows = 0
    for step in steps:
        if taken + len(chosen) >= budget.sequences or rows + step.rows > budget.rows:
            break
        chosen.append(step)
        rows += step.rows
    return tuple(chosen)
