"""The stream on its own, with decoders that do awkward things."""

from __future__ import annotations

from collections.abc import Sequence

from node.models.text_stream import TextStream


def run_bytes(tokens: Sequence[int]) -> str:
    """Like SentencePiece's byte fallback: a run of bytes is a text or nothing but U+FFFD."""
    data = bytes(tokens)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(data)


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
    assert stream.finish() == "\ufffd"


def test_nothing_pending_gives_nothing() -> None:
    assert TextStream(words).finish() == ""
