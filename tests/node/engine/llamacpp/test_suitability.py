"""Which models llama.cpp is the best backend for: one row each."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.engine.backend import BACKENDS, Device
from node.engine.base import Quantise
from node.engine.llamacpp.suitability import ABLE, AT_NEED, BEST, METAL_BEST, ON_CARD, llamacpp_suits, rank


@pytest.mark.parametrize(
    ("bytes_of", "experts", "device", "expected"),
    [
        ({"Q4_K": 80, "Q6_K": 15, "F32": 5}, False, "cpu", BEST),
        ({"Q8_0": 95, "F32": 5}, False, "cpu", ABLE),
        ({"Q4_1": 95, "F32": 5}, False, "cpu", ABLE),
        ({"F16": 95, "F32": 5}, False, "cpu", ABLE),
        ({"IQ3_S": 95, "F32": 5}, False, "cpu", BEST),
        ({"IQ4_NL": 60, "Q8_0": 40}, False, "cpu", BEST),
        ({"MXFP4": 90, "Q8_0": 10}, True, "cpu", BEST),
        ({"Q8_0": 100}, True, "cpu", BEST),
        ({"Q8_0": 60, "Q6_K": 40}, False, "cpu", ABLE),
        ({"Q4_K": 100}, False, "mps", METAL_BEST),
        ({"Q8_0": 100}, False, "mps", ON_CARD),
        ({"Q4_K": 100}, False, "cuda", ON_CARD),
        ({}, False, "cpu", ABLE),
    ],
)
def test_k_quants_and_experts_are_its_own(
    bytes_of: dict[str, int], experts: bool, device: Device, expected: int
) -> None:
    assert rank(bytes_of, experts, device, "auto").rank == expected


@pytest.mark.parametrize("quantise", ["none", "int8", "int4"])
def test_it_holds_weights_as_they_came_or_not_at_all(quantise: Quantise) -> None:
    suits = rank({"Q4_K": 100}, False, "cpu", quantise)
    assert suits.rank == 0
    assert "blocks as they are" in suits.why_not


def test_a_small_model_is_for_those_that_compute_in_float32(tiny_gguf: Path) -> None:
    assert llamacpp_suits(tiny_gguf, "cpu", "auto").rank == AT_NEED
    assert 0 < AT_NEED < BACKENDS["torch"].suits(tiny_gguf, "cpu", "auto").rank


def test_a_folder_is_told_by_its_header(
    tiny_gguf: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.weights.small.SMALL_BYTES", 0)
    assert llamacpp_suits(tiny_gguf, "cpu", "auto").rank == ABLE
    assert "safetensors" in llamacpp_suits(tiny_folder, "cpu", "auto").why_not
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    assert llamacpp_suits(tmp_path, "cpu", "auto").rank == 0
