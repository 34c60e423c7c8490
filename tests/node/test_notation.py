"""Ranges and sizes as people write them."""

from __future__ import annotations

import pytest

from node.errors import UsageError
from node.notation import MOST_LAYERS, parse_bytes, parse_layers


def test_sizes_are_read_as_people_write_them() -> None:
    assert parse_bytes("6g") == parse_bytes("6 GiB") == parse_bytes("6GB") == 6 * 1024**3
    assert parse_bytes("1.5m") == 1_572_864
    assert parse_bytes("1000") == 1000


@pytest.mark.parametrize("text", ["", "g", "-1g", "0", "0.1", "1x", "1e9", "NaN", "9" * 40, "9" * 15 + "t", "²g"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "5", "5:5", "7:3", "-1:4", "a:b", "0:10:20", "0:999999", "0:10001", "²:5"])
def test_layers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--layers"):
        parse_layers(text)


def test_layers_are_read() -> None:
    assert parse_layers("0:15") == (0, 15)
    assert parse_layers(f" 3:{MOST_LAYERS} ") == (3, MOST_LAYERS)
