"""Room for keys and values: what is counted, what the operating system gives, and what happens where there is none."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.base import BLOCK_TOKENS, Batch, Slot
from node.engine.memory import WorkerMemory
from node.engine.ort.frames import clusters
from node.engine.ort.kv_memory import KvMemory
from node.engine.ort.part_store import PartStore
from node.engine.ort.slots import Slots
from node.errors import EngineError, OutOfKV
from node.wire.frames import Sampling
from tests.node.engine.driving import batch_of
from tests.node.engine.ort.driving import ids_at, load_ort

TOKEN_BYTES = 2 * 4 * 2 * 16
"""Of one of the tiny model's layers: keys and values of two heads of 16 numbers."""


def test_a_slot_without_room_says_so_and_nothing_of_it_moves(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 0, 6, kv_bytes=3 * BLOCK_TOKENS * 6 * TOKEN_BYTES)
    assert stage.info.kv_tokens == 3 * BLOCK_TOKENS
    stage.open("a", 0, 6, Sampling(), 10)
    stage.open("b", 0, 6, Sampling(), 10)
    ids = [5] * 128
    result = stage.run(batch_of(("a", 0, ids, "token"), ("b", 0, ids[:64], "token")))
    assert [len(slot.tokens) for slot in result.slots] == [1, 1]
    assert result.free_kv_tokens == 0
    full = stage.run(batch_of(("a", 128, [7], "token"), ("b", 64, [7], "token")))
    assert [(slot.out_of_kv, slot.problem, slot.tokens) for slot in full.slots] == [(True, "", ())] * 2
    stage.close("a")
    again = stage.run(batch_of(("b", 64, [7], "token")))
    assert not again.slots[0].out_of_kv
    assert len(again.slots[0].tokens) == 1


def test_room_is_taken_in_blocks_as_a_sequence_grows(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 0, 6, kv_bytes=10 * BLOCK_TOKENS * 6 * TOKEN_BYTES)
    stage.open("a", 0, 6, Sampling(), 1)
    free = [stage.run(batch_of(("a", 0, [5] * 64, "nothing"))).free_kv_tokens]
    free.append(stage.run(batch_of(("a", 64, [5], "nothing"))).free_kv_tokens)
    assert free == [9 * BLOCK_TOKENS, 8 * BLOCK_TOKENS]


def test_a_prompt_that_finds_no_room_is_not_admitted(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 0, 6, kv_bytes=2 * BLOCK_TOKENS * 6 * TOKEN_BYTES)
    with pytest.raises(OutOfKV, match="room for 128 more tokens, 129 needed"):
        stage.open("a", 0, 6, Sampling(), 129)
    stage.open("a", 0, 6, Sampling(), 128)


def test_no_kv_at_all_loads_and_admits_nobody(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 0, 6, kv_bytes=0)
    assert stage.info.kv_tokens == 0
    with pytest.raises(OutOfKV, match="room for 0 more tokens"):
        stage.open("a", 0, 6, Sampling(), 1)


def test_a_sequence_over_some_layers_takes_their_share_of_the_room(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 0, 6, kv_bytes=2 * BLOCK_TOKENS * 6 * TOKEN_BYTES)
    stage.open("narrow", 2, 4, None, 2 * BLOCK_TOKENS)
    with pytest.raises(OutOfKV, match="room for 64 more tokens"):
        stage.open("wide", 0, 6, Sampling(), 2 * BLOCK_TOKENS)


def test_a_sequence_longer_than_the_models_context_is_refused_with_a_sentence(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 0, 6)
    with pytest.raises(EngineError, match="257 tokens in one sequence, but there is room for 256"):
        stage.open("a", 0, 6, Sampling(), 257)
    stage.open("a", 0, 6, Sampling(), 1)
    stage.run(batch_of(("a", 0, [5] * 256, "token")))
    (slot,) = stage.run(batch_of(("a", 256, [5], "token"))).slots
    assert "room for 256" in slot.problem


def test_two_stages_of_a_worker_share_parts_and_room(tiny_folder: Path) -> None:
    store = PartStore()
    whole = load_ort(tiny_folder, 0, 6, store=store, kv_bytes=4 * BLOCK_TOKENS * 6 * TOKEN_BYTES)
    made = store.made_count
    part = load_ort(tiny_folder, 0, 6, store=store, kv_bytes=4 * BLOCK_TOKENS * 6 * TOKEN_BYTES)
    assert store.made_count == made, "nothing is made that is held already"
    whole.open("a", 0, 6, Sampling(), 3 * BLOCK_TOKENS)
    with pytest.raises(OutOfKV):
        part.open("b", 0, 6, Sampling(), 2 * BLOCK_TOKENS)
    whole.drop()
    part.open("b", 0, 6, Sampling(), 2 * BLOCK_TOKENS)
    part.drop()
    del whole, part
    assert len(store) == 0
    assert store.memory.reserved_bytes == 0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count is read")
def test_only_what_is_written_takes_memory_and_it_is_given_back() -> None:
    before = resident_bytes()
    kv = KvMemory([(8, 128)] * 4, 131_072, 1 << 20)
    assert kv.slots >= 8
    assert sum(keys.nbytes + values.nbytes for keys, values in kv.layers) > 1 << 36
    keys, values = kv.layers[2]
    keys[3, :, :1024], values[3, :, :1024] = 1, 1
    written = 2 * 8 * 1024 * 128 * 4
    assert written <= resident_bytes() - before < 2 * written
    kv.give_back(3)
    assert resident_bytes() - before < written // 2
    assert keys[3, 0, 0, 0] == 0


STEPS = ["open", "grow", "rewind", "close"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["open", "grow", "rewind", "close"]), st.integers(0, 5), st.integers(0, 300)))
)
def test_what_is_counted_is_what_sequences_have(steps: list[tuple[str, int, int]]) -> None:
    memory = WorkerMemory(lambda: 0)
    kv = KvMemory([(1, 16)] * 2, 512, 512)
    slots = Slots(0, (128, 128), 700 * 256, 512, kv, memory)
    memory.enter(kv, 700 * 256)
    for what, number, tokens in steps:
        name = f"s{number}"
        try:
            match what:
                case "open":
                    slots.open(name, number % 2, 2, None, tokens)
                case "grow":
                    slots.grow(slots.get(name), tokens)
                case "rewind":
                    slots.rewind(name, tokens)
                case _:
                    slots.close(name)
        except EngineError:
            pass
        held = [one for one in map(slots.find, (f"s{n}" for n in range(6))) if one is not None]
        assert memory.reserved_bytes == sum(one.room * one.token_bytes for one in held) <= 700 * 256
        assert len({one.slot for one in held}) == len(held)
        assert slots.free_bytes == 700 * 256 - memory.reserved_bytes
    slots.clear()
    assert memory.reserved_bytes == 0


def test_sequences_far_apart_run_apart_where_what_lies_between_costs_more_than_the_weights() -> None:
    lengths = {0: 10, 1: 1000, 2: 10, 3: 10, 7: 10}
    assert clusters([0, 2, 3, 7], lengths, 100, 50_000) == [[0], [2, 3, 7]]
    assert clusters([0, 2, 3, 7], lengths, 100, 500_000) == [[0, 2, 3, 7]]
    assert clusters([5], lengths, 100, 1) == [[5]]


def test_as_many_sequences_as_there_may_be_and_no_more(tiny_folder: Path) -> None:
    stage = load_ort(tiny_folder, 3, 6)
    for number in range(stage.info.max_sequences):
        stage.open(f"s{number}", 3, 6, Sampling(), 1)
    with pytest.raises(EngineError, match="256 sequences are open already"):
        stage.open("more", 3, 6, Sampling(), 1)
    stage.close("s7")
    stage.open("more", 3, 6, Sampling(), 1)
    hidden = np.zeros((2, 64), np.float32)
    batch = Batch((Slot("s0", 0, 1, "token"), Slot("s255", 0, 1, "token")), hidden.tobytes(), "float32")
    assert [len(slot.tokens) for slot in stage.run(batch).slots] == [1, 1]


def test_frames_of_past_batches_are_let_go(tiny_folder: Path) -> None:
    from node.engine.ort.frames import FRAMES_KEPT

    stage = load_ort(tiny_folder, 0, 3)
    for number in range(60):
        stage.open(f"s{number}", 0, 3, None, 1)
    for number in range(60):
        stage.run(ids_at(Slot(f"s{number}", 0, 1), ids=[5]))
    assert len(stage._chain._frames) <= FRAMES_KEPT
