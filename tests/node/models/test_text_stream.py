"""The stream on its own, with decoders that do awkward things."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from node.models.text_stream import TextStream


def run_bytes(tokens: Sequence[int]) -> str:
    """Like SentencePiece's byte fallback: a run of bytes is a text or nothing but U+FFFD."""
    data = bytes(tokens)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(data)


def lossy(tokens: Sequence[int]) -> str:
    """Like byte-level BPE: what is no character shows as U+FFFD, its neighbours are not touched."""
    return bytes(tokens).decode(errors="replace")


def words(tokens: Sequence[int]) -> str:
    """Every token is a word with a space before it, which falls away at the very start."""
    return "".join(f" w{token}" for token in tokens).removeprefix(" ")


def test_a_space_at_the_start_falls_away_once() -> None:
    stream = TextStream(words)
    assert [stream.push(1), stream.push(2), stream.push(3), stream.finish()] == ["w1", " w2", " w3", ""]


def test_a_character_appears_with_its_last_byte() -> None:
    stream = TextStream(run_bytes)
    assert [stream.push(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]


def test_what_was_given_out_is_never_taken_back() -> None:
    stream = TextStream(run_bytes)
    pieces = [stream.push(byte) for byte in "é".encode() + b"\xf0"]
    assert pieces == ["", "é", ""]
    assert stream.finish() == ""


def test_nothing_pending_gives_nothing() -> None:
    assert TextStream(words).finish() == ""


def test_an_answer_that_is_cut_inside_a_character_ends_before_it() -> None:
    stream = TextStream(lossy)
    assert [stream.push(byte) for byte in "a🙂".encode()[:4]] == ["a", "", "", ""]
    assert stream.finish() == ""


def test_a_model_that_repeats_what_is_no_character_is_shown_and_costs_the_same_for_every_token() -> None:
    decoded: list[int] = []

    def counted(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return lossy(tokens)

    stream = TextStream(counted)
    pieces = [stream.push(0x80) for _ in range(3000)]
    assert "".join(pieces) == "\ufffd" * (3000 - 7)
    assert stream.finish() == ""
    assert max(decoded) <= 16
    assert sum(decoded) <= 3000 * 200


def test_a_character_after_many_that_are_none_comes_whole() -> None:
    tokens = "\ufffd\ufffd\ufffd\ufffd🙂 and 🙂".encode()
    stream = TextStream(lossy)
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.finish() == "\ufffd\ufffd\ufffd\ufffd🙂 and 🙂"


@given(st.lists(st.sampled_from([*"aé🙂\ufffd".encode(), 0x80, 0xF0]), max_size=60))
def test_whatever_bytes_come_the_text_is_that_of_decoding_at_once(tokens: list[int]) -> None:
    stream = TextStream(lossy)
    pieces = [stream.push(token) for token in tokens]
    assert ("".join(pieces) + stream.finish()).rstrip("\ufffd") == lossy(tokens).rstrip("\ufffd")
