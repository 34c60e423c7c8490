"""Blocks stand for the same numbers as the file's, to the last bit, whatever bytes a block has."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from node.weights.blocks import quantised
from node.weights.ggml_grids import GRIDS, dequantised, from_ggml
from node.weights.ggml_types import TYPES


def test_our_table_of_types_is_ggmls() -> None:
    for number, kind in TYPES.items():
        theirs = GGMLQuantizationType(number)
        assert (kind.name, (kind.block_items, kind.block_bytes)) == (theirs.name, GGML_QUANT_SIZES[theirs])


@pytest.mark.parametrize("kind", sorted(GRIDS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_block_means_what_ggml_says(kind: str, data: st.DataObject) -> None:
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    raw = np.frombuffer(data.draw(st.binary(min_size=4 * size, max_size=4 * size)), np.uint8).reshape(2, 2 * size)
    _assert_same(raw, kind)


@pytest.mark.parametrize("kind", sorted(GRIDS))
def test_many_random_blocks_mean_what_ggml_says(kind: str) -> None:
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    _assert_same(np.random.default_rng(5).integers(0, 256, (64, 8 * size), dtype=np.uint8), kind)


def _assert_same(raw: np.ndarray, kind: str) -> None:
    blocks = from_ggml(raw, kind)
    assert blocks is not None
    with np.errstate(all="ignore"):
        expected = dequantize(raw, GGMLQuantizationType[kind])
    found = blocks.values()
    assert found.dtype == np.float32
    assert found.shape == blocks.shape == expected.shape
    np.testing.assert_array_equal(found, expected)  # infinities and what is no number included
    assert blocks.bits == 8 or int(blocks.quants.max()) < 16


def test_a_large_matrix_is_taken_apart_in_pieces_that_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(5).integers(0, 256, (7, 3 * 144), dtype=np.uint8)
    whole = from_ggml(raw, "Q4_K")
    monkeypatch.setattr("node.weights.ggml_grids.CHUNK_ITEMS", 2 * 768)
    pieces = from_ggml(raw, "Q4_K")
    assert whole is not None
    assert pieces is not None
    np.testing.assert_array_equal(whole.values(), pieces.values())


def test_taking_a_matrix_apart_needs_little_beside_it() -> None:
    raw = np.zeros((4096, 16 * 144), np.uint8)  # 16 million numbers
    tracemalloc.start()
    try:
        blocks = from_ggml(raw, "Q4_K")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert blocks is not None
    assert peak < blocks.quants.nbytes + 2 * blocks.scales.nbytes + 64 * 1024**2


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ1_S", "IQ3_S", "TQ1_0"])
def test_types_that_are_no_such_grid_come_as_numbers(kind: str) -> None:
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    raw = np.random.default_rng(5).integers(0, 256, (2, size), dtype=np.uint8)
    assert from_ggml(raw, kind) is None
    assert dequantised(raw, kind).shape == (2, 256)


@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), spread=st.floats(1e-6, 1e6))
def test_a_quantised_matrix_is_within_half_a_step(bits: int, seed: int, spread: float) -> None:
    values = (np.random.default_rng(seed).standard_normal((3, 64)) * spread).astype(np.float32)
    values[0, :32] = 0
    blocks = quantised(values, bits)  # type: ignore[arg-type]
    step = np.abs(blocks.scales).repeat(32, axis=1)
    # 4 bits: the side with seven steps may be cut off by up to one
    assert np.all(np.abs(blocks.values() - values) <= step * (0.51 if bits == 8 else 1.01))
    assert not blocks.values()[0, :32].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_moving_the_zero_to_the_middle_changes_no_more_than_the_last_place(seed: int) -> None:
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (2, 144 * 2), dtype=np.uint8)
    for block in raw.reshape(-1, 144):
        block[:4].view(np.float16)[:] = random.uniform(0.001, 1, 2)
    blocks = from_ggml(raw, "Q4_K")
    assert blocks is not None
    moved = blocks.centred()
    assert moved.zero == 8
    largest = np.abs(blocks.scales * 16).max() + np.abs(blocks.minimums).max()  # type: ignore[arg-type]
    np.testing.assert_allclose(moved.values(), blocks.values(), atol=float(largest) * 2**-23, rtol=0)


def test_packing_puts_the_first_of_two_into_the_low_half() -> None:
    blocks = quantised(np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64), 4)
    packed = blocks.packed()
    assert packed.shape == (1, 2, 16)
    assert np.array_equal(packed & 15, blocks.quants[..., 0::2])
    assert np.array_equal(packed >> 4, blocks.quants[..., 1::2])
    assert blocks.nbytes == packed.nbytes + blocks.scales.nbytes
