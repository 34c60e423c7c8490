"""What a sequence has computed is there for the next one that begins with the same tokens, bit for bit, until its room
is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.engine.base import BLOCK_TOKENS
from node.engine.ort.stage import OrtStage
from node.wire.frames import Sampling
from tests.node.engine.driving import batch_of
from tests.node.engine.ort.driving import load_ort, logits_of, step

TOKEN_BYTES = 6 * 2 * 4 * 2 * 16
"""Of the tiny model: six layers, keys and values of two heads of 16 numbers."""
IDS = [int(token) for token in np.random.default_rng(3).integers(3, 90, 200)]
NAMES = tuple(bytes([block]) * 16 for block in range(3))


def stage_of(folder: Path, blocks: int = 40) -> OrtStage:
    return load_ort(folder, 0, 6, kv_bytes=blocks * BLOCK_TOKENS * TOKEN_BYTES)


def leave(stage: OrtStage, sequence: str, ids: list[int], names: tuple[bytes, ...] = NAMES) -> None:
    """Run a prompt, keep what it is named by, and go."""
    stage.open(sequence, 0, 6, Sampling(), len(ids))
    step([stage], sequence, 0, ids)
    stage.keep(sequence, names)
    stage.close(sequence)


def test_the_next_turn_goes_on_from_what_is_kept_and_gets_the_same_bits(tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder)
    whole = logits_of([stage], IDS, sequence="whole")
    stage.close("whole")
    leave(stage, "first", IDS[:150])
    stage.open("next", 0, 6, Sampling(), len(IDS))
    assert stage.take_up("next", NAMES) == 128, "whole blocks of what it held"
    assert np.array_equal(logits_of([stage], IDS[128:], 128, "next"), whole)


def test_what_is_kept_is_not_touched_by_others_steps(tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder, blocks=400)
    whole = logits_of([stage], IDS, sequence="whole")
    stage.close("whole")
    leave(stage, "first", IDS[:150])
    others = [f"other {index}" for index in range(stage.info.max_sequences - 1)]
    for name in others:  # so many that the kept slot lies between theirs
        stage.open(name, 0, 6, Sampling(), 1)
    assert max(stage._slots.lengths()) == stage.info.max_sequences - 1
    for position in range(2):
        result = stage.run(batch_of(*((name, position, [7], "token") for name in others)))
        assert not any(slot.problem for slot in result.slots)
    stage.close(others[0])
    stage.open("next", 0, 6, Sampling(), 128)
    assert stage.take_up("next", NAMES) == 128
    assert np.array_equal(logits_of([stage], IDS[128:], 128, "next"), whole)


def test_only_equal_names_of_equal_layers_are_taken_up(tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder)
    leave(stage, "first", IDS[:150])
    stage.open("other text", 0, 6, Sampling(), 150)
    assert stage.take_up("other text", (b"?" * 16, *NAMES[1:])) == 0
    stage.open("begins alike", 0, 6, Sampling(), 150)
    assert stage.take_up("begins alike", (NAMES[0], b"?" * 16)) == 64
    stage.open("fewer layers", 1, 5, None, 150)
    assert stage.take_up("fewer layers", NAMES) == 0


def test_kept_room_counts_as_free_and_is_given_to_who_needs_it(tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder, blocks=5)
    leave(stage, "first", IDS[:150])
    assert (stage._slots.kept_bytes, stage._slots.free_tokens) == (2 * BLOCK_TOKENS * TOKEN_BYTES, 5 * BLOCK_TOKENS)
    stage.open("small", 0, 6, Sampling(), 3 * BLOCK_TOKENS)
    assert stage._slots.kept_bytes, "both have room"
    step([stage], "small", 0, IDS[:192])
    step([stage], "small", 192, [5])
    assert not stage._slots.kept_bytes, "the fourth block was needed"
    stage.open("next", 0, 6, Sampling(), 10)
    assert stage.take_up("next", NAMES) == 0


def test_no_slot_is_lost_however_often_texts_are_kept(tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder, blocks=400)
    slots = stage.info.max_sequences
    for turn in range(30):
        leave(stage, f"turn {turn}", IDS[:150], tuple(bytes([turn, block]) * 8 for block in range(2)))
    leave(stage, "again", IDS[:150], (bytes([29, 0]) * 8,))  # the longer one stands for it
    assert len(stage._slots._free) + len(stage._slots._kept_tokens) == slots
    assert stage._slots.kept_bytes <= stage._slots.free_bytes
    for index in range(slots):
        stage.open(f"last {index}", 0, 6, Sampling(), 0)
    assert not stage._slots._kept_tokens, "each of them can have a slot"
    stage.drop()
    assert len(stage._slots._free) == slots


@pytest.mark.parametrize("names", [(), NAMES[:1]])
def test_what_fills_no_block_is_not_kept(names: tuple[bytes, ...], tiny_folder: Path) -> None:
    stage = stage_of(tiny_folder)
    leave(stage, "short", IDS[:60], names)
    assert not stage._slots.kept_bytes
