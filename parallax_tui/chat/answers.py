"""Chunks of a streamed chat completion, as the node sends them, and what each one means for the conversation."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from node.wire.events import HopLatency
from parallax_tui.chat.cleaning import clean


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Timing(msgspec.Struct):
    request_id: str = ""
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    return_ms: float = 0.0
    hops: tuple[HopLatency, ...] = ()


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    parallax: _Timing | None = None
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of the answer, already safe to show."""

    text: str


@dataclass(frozen=True, slots=True)
class Answered:
    """Figures of the answer. They come in two parts: times with the last piece, token counts after it."""

    reason: str = ""
    """`stop`, `length`, or empty in the part that only counts."""
    tokens: int = 0
    prompt_tokens: int = 0
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    return_ms: float = 0.0
    hops: tuple[HopLatency, ...] = ()

    def with_counts(self, other: Answered) -> Answered:
        """Both parts in one."""
        return Answered(
            self.reason or other.reason,
            self.tokens or other.tokens,
            self.prompt_tokens or other.prompt_tokens,
            self.ttft_ms or other.ttft_ms,
            self.tpot_ms or other.tpot_ms,
            self.return_ms or other.return_ms,
            self.hops or other.hops,
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer ended in an error; `reason` is for people."""

    reason: str


def decode_chunk(data: str) -> tuple[Piece | Answered | Refused, ...]:
    """What one chunk says, in order; an unreadable one is an error like any other."""
    try:
        chunk = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        return (Refused(f"the node sent what is no chat chunk ({error}); are node and TUI of one version?"),)
    if chunk.error is not None:
        return (Refused(clean(chunk.error.message) or "the node gave no reason"),)
    found: list[Piece | Answered | Refused] = []
    choice = chunk.choices[0] if chunk.choices else None
    if choice is not None and choice.delta.content:
        found.append(Piece(clean(choice.delta.content)))
    timing, usage = chunk.parallax or _Timing(), chunk.usage or _Usage()
    reason = (choice.finish_reason if choice is not None else None) or ""
    if reason or chunk.usage is not None:
        found.append(
            Answered(
                reason,
                usage.completion_tokens,
                usage.prompt_tokens,
                timing.ttft_ms,
                timing.tpot_ms,
                timing.return_ms,
                timing.hops,
            )
        )
    return tuple(found)
