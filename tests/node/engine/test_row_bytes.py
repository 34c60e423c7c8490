"""Hidden rows as bytes of each dtype and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engine.row_bytes import bytes_of, rows_from
from node.wire.models import Dtype


@given(st.lists(st.floats(width=32), min_size=4, max_size=64))
def test_bfloat16_is_rounded_as_torch_does(values: list[float]) -> None:
    rows = np.array(values[: len(values) // 4 * 4], np.float32).reshape(-1, 4)
    back = rows_from(bytes_of(rows, "bfloat16"), "bfloat16", 4)
    expected = torch.from_numpy(rows).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(back, expected, equal_nan=True)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_each_dtype_has_its_size_and_comes_back(dtype: Dtype, size: int) -> None:
    rows = np.array([[1.0, -2.5, 0.0], [65536.0, np.inf, 0.375]], np.float32)
    data = bytes_of(rows, dtype)
    assert memoryview(data).nbytes == rows.size * size
    back = rows_from(data, dtype, 3)
    assert back.shape == (2, 3)
    assert np.array_equal(back[0], rows[0])
    assert (back[1, 0] == np.inf) == (dtype == "float16")
