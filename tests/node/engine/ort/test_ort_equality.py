"""A sequence gets the same bits alone and in company, whole and in chunks, from one stage and from several, on one
thread and on two, the first time and replayed: in float32 and on every kind of grid."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from node.engine.base import Batch, Quantise, Slot
from node.engine.ort.part_store import PartStore
from node.engine.ort.stage import OrtStage
from tests.node.engine.driving import batch_of, save_tiny, tiny_llama
from tests.node.engine.ort.driving import cut, ids_at, load_ort, open_all, rows, run_all

WIDTH = 128
ARITHMETICS: list[Quantise] = ["none", "int8", "int4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger than the smallest, so that kernels take the paths of real models: several tiles, several blocks."""
    where = tmp_path_factory.mktemp("equal") / "llama"
    save_tiny(
        tiny_llama(hidden_size=WIDTH, intermediate_size=320, num_attention_heads=4, max_position_embeddings=2048), where
    )
    return where


@pytest.fixture(scope="module", params=ARITHMETICS)
def how(request: pytest.FixtureRequest) -> Quantise:
    chosen: Quantise = request.param
    return chosen


@dataclass
class Text:
    """A sequence of a test: its ids are given, so that its rows do not depend on what a head chooses."""

    name: str
    ids: list[int]
    prompt: int
    given: list[np.ndarray] = field(default_factory=list)
    position: int = 0

    @property
    def states(self) -> np.ndarray:
        return np.concatenate(self.given)


def texts(count: int, longest: int, seed: int) -> list[Text]:
    chance = random.Random(seed)
    made = []
    for number in range(count):
        prompt = chance.randint(2, longest)
        ids = [chance.randrange(3, 128) for _ in range(prompt + chance.randint(2, 12))]
        made.append(Text(f"t{number}", ids, prompt))
    return made


def alone(stages: Sequence[OrtStage], text: Text) -> np.ndarray:
    """Its prompt in one piece, then step by step."""
    open_all(stages, "alone")
    given, position = [], 0
    for count in [text.prompt] + [1] * (len(text.ids) - text.prompt):
        given.append(states_of(stages, "alone", position, text.ids[position : position + count]))
        position += count
    for stage in stages:
        stage.close("alone")
    return np.concatenate(given)


def states_of(stages: Sequence[OrtStage], name: str, position: int, ids: Sequence[int]) -> np.ndarray:
    """After the last of these stages, which does not end the model."""
    return rows(run_all(stages, batch_of((name, position, list(ids), "nothing"))), WIDTH)


def test_neighbours_that_join_and_leave_change_no_bit(folder: Path, how: Quantise) -> None:
    """Decode batches of changing sequences over scattered slots, with prompts in chunks between them."""
    stage = load_ort(folder, 0, 5, quantise=how)
    chance = random.Random(7)
    waiting, running, done = texts(14, 60, 1), [], []
    while waiting or running:
        while waiting and len(running) < 6 and chance.random() < 0.6:
            text = waiting.pop()
            open_all([stage], text.name)
            running.append(text)
        taken = [text for text in running if chance.random() < 0.8]
        slots, ids = [], []
        for text in taken:
            left = text.prompt - text.position
            count = 1 if left <= 0 else min(left, chance.choice([7, 16, 33]))
            count += left - count == 1  # a rest of one row would be a decode step
            slots.append(Slot(text.name, text.position, count))
            ids += text.ids[text.position : text.position + count]
        if not slots:
            continue
        states = rows(stage.run(ids_at(*slots, ids=ids)), WIDTH)
        begin = 0
        for text, slot in zip(taken, slots, strict=True):
            text.given.append(states[begin : begin + slot.count])
            text.position += slot.count
            begin += slot.count
        for text in [text for text in running if text.position == len(text.ids)]:
            stage.close(text.name)
            running.remove(text)
            done.append(text)
    fresh = load_ort(folder, 0, 5, quantise=how)
    for text in done:
        assert np.array_equal(text.states, alone([fresh], text)), text.name


def test_a_prompt_in_chunks_ends_in_the_same_bits(folder: Path, how: Quantise) -> None:
    stage = load_ort(folder, 0, 5, quantise=how)
    ids = [random.Random(3).randrange(3, 128) for _ in range(900)]
    open_all([stage], "whole")
    whole = states_of([stage], "whole", 0, ids)
    for sizes in ([450, 450], [2, 898], [300, 41, 557, 2], [512, 388]):
        open_all([stage], "chunks")
        given, position = [], 0
        for size in sizes:
            given.append(states_of([stage], "chunks", position, ids[position : position + size]))
            position += size
        assert np.array_equal(np.concatenate(given), whole), sizes
        stage.close("chunks")


@pytest.mark.parametrize("cuts", [[0, 2, 5], [0, 1, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_a_chain_gives_the_bits_of_one_stage(folder: Path, how: Quantise, cuts: list[int]) -> None:
    (text,) = texts(1, 60, 5)
    whole = alone([load_ort(folder, 0, 5, quantise=how)], text)
    assert np.array_equal(alone(cut(folder, cuts, quantise=how), text), whole)


def test_some_layers_of_a_stage_give_the_bits_of_a_stage_of_those(folder: Path, how: Quantise) -> None:
    """They begin and end inside the parts that the whole stage is made of."""
    whole, middle = load_ort(folder, 0, 6, quantise=how), load_ort(folder, 1, 4, quantise=how)
    given = np.random.default_rng(2).standard_normal((9, WIDTH)).astype(np.float32)
    for stage in (whole, middle):
        stage.open("s", 1, 4, None, 20)
    for position, count in ((0, 7), (7, 1), (8, 1)):
        batch = Batch((Slot("s", position, count),), given[position : position + count].tobytes(), "float32")
        assert bytes(whole.run(batch).data) == bytes(middle.run(batch).data)


def test_threads_change_no_bit_while_parts_take_them_over(folder: Path, how: Quantise) -> None:
    (text,) = texts(1, 60, 9)
    store = PartStore()
    stage = load_ort(folder, 0, 5, quantise=how, store=store)
    one = alone([stage], text)
    store.threads = 2
    for _ in range(200):
        assert np.array_equal(alone([stage], text), one)
        if stage.threads == {2}:
            break
    assert stage.threads == {2}


def test_what_is_replayed_after_a_death_is_the_same_cache(folder: Path, how: Quantise) -> None:
    """Prompt as a chunk, the answer's tokens as the decode steps that they were: all in one slot each."""
    stage = load_ort(folder, 0, 5, quantise=how)
    (text,) = texts(1, 60, 11)
    alone([stage], text)
    expected = None
    for replayed in (False, True):
        open_all([stage], "s")
        states_of([stage], "s", 0, text.ids[: text.prompt])
        answer = text.ids[text.prompt :]
        if replayed:
            stage.run(ids_at(Slot("s", text.prompt, len(answer), replay=True), ids=answer))
        else:
            for place, token in enumerate(answer):
                states_of([stage], "s", text.prompt + place, [token])
        after = states_of([stage], "s", len(text.ids), [5])
        expected = after if expected is None else expected
        assert np.array_equal(after, expected)
        stage.close("s")


def test_what_lies_behind_a_sequences_end_is_never_read(folder: Path, how: Quantise) -> None:
    """Holes, rewinds and closed sequences leave numbers there, which may be anything."""
    stage = load_ort(folder, 0, 5, quantise=how)
    (text,) = texts(1, 60, 13)
    expected = alone([stage], text)
    for keys, values in stage._chain._kv.layers:
        keys[0], values[0] = np.nan, np.nan
    assert np.array_equal(alone([stage], text), expected)


def test_a_rewound_sequence_goes_on_as_if_it_had_never_been_elsewhere(folder: Path, how: Quantise) -> None:
    stage = load_ort(folder, 0, 5, quantise=how)
    ids = list(range(3, 40))
    open_all([stage], "s")
    states_of([stage], "s", 0, ids[:20])
    expected = states_of([stage], "s", 20, ids[20:])
    stage.rewind("s", 20)
    states_of([stage], "s", 20, [99, 98, 97])
    stage.rewind("s", 20)
    assert np.array_equal(states_of([stage], "s", 20, ids[20:]), expected)
