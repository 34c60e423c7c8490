"""Ranges and sizes as people write them."""

from __future__ import annotations

import pytest

from node.errors import UsageError
from node.notation import MOST_LAYERS, parse_bytes, parse_host_name, parse_layers, parse_origin


def test_sizes_are_read_as_people_write_them() -> None:
    assert parse_bytes("6g") == parse_bytes("6 GiB") == parse_bytes("6GB") == 6 * 1024**3
    assert parse_bytes("1.5m") == 1_572_864
    assert parse_bytes("8589934592") == 8 * 1024**3


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
    assert parse_layers("0-14") == parse_layers("0 – 14") == (0, 15)
    assert parse_layers("7-7") == (7, 8)
    assert parse_layers(f" 3:{MOST_LAYERS} ") == (3, MOST_LAYERS)


@pytest.mark.parametrize(("text", "meant"), [("6", "6g"), ("1", "1g"), ("1.5", "1.5g"), ("512", "512m"), ("6 b", "6g")])
def test_a_small_number_without_a_unit_is_refused_with_the_one_that_was_meant(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"--cap attic: {text!r}.*did you mean {meant}"):
        parse_bytes(text, "--cap attic:")


def test_origins_and_host_names_are_read_as_people_write_them() -> None:
    assert parse_origin("HTTP://nas:3000/") == "http://nas:3000"
    assert [parse_origin(each) for each in ("app://notes", "*", "null")] == ["app://notes", "*", "null"]
    for written, name in (("Nas.local", "nas.local"), ("[fd77::1]", "fd77::1"), ("0.0.0.0", "0.0.0.0")):
        assert parse_host_name(written) == name
    for text in ("nas:3000", "http://nas/path", "http://a@b", "", "http://a b"):
        with pytest.raises(UsageError, match="--cors"):
            parse_origin(text)
    for text in ("nas:3000", "http://nas", "", "a b", "a/b"):
        with pytest.raises(UsageError, match="--allow-host"):
            parse_host_name(text)
