"""A model is computed in its own numbers where the device has them, else in others, with a message."""

from __future__ import annotations

import pytest
import torch

from node.engine.torch import arithmetic
from node.engine.torch.arithmetic import computes_in, name_of, why_not
from node.wire.models import Dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_processor_computes_in_all_of_them(dtype: Dtype) -> None:
    assert computes_in(torch.device("cpu"), dtype) == dtype


@pytest.mark.parametrize(
    ("lacking", "wanted", "taken"),
    [
        ({"bfloat16"}, "bfloat16", "float16"),
        ({"bfloat16", "float16"}, "bfloat16", "float32"),
        ({"float16"}, "float16", "float32"),
        ({"float32"}, "float32", "float32"),
    ],
)
def test_where_the_chip_lacks_one_the_next_is_taken_and_told(
    lacking: set[str], wanted: Dtype, taken: Dtype, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arithmetic, "why_not", lambda _, dtype: "no such arithmetic" if dtype in lacking else "")
    assert computes_in(torch.device("cpu"), wanted) == taken
    said = capsys.readouterr().err
    assert f"does not compute in {wanted}: no such arithmetic" in said


def test_a_device_that_computes_nothing_is_not_believed() -> None:
    assert why_not(torch.device("meta"), "float32")


def test_a_chip_that_torch_cannot_name_is_unknown() -> None:
    assert name_of(torch.device("cuda")).startswith("an unknown chip") or torch.cuda.is_available()
