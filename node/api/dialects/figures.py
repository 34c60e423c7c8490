"""Figures of an answer that OpenAI's clients read, and ours: `parallax` tells where the time went."""

from __future__ import annotations

from typing import Any

import msgspec

from node.api.service import Answer


def usage(answer: Answer) -> dict[str, int]:
    """Tokens, of all choices together."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.tokens,
        "total_tokens": answer.prompt_tokens + answer.tokens,
    }


def latency(answer: Answer) -> dict[str, Any]:
    """The `parallax` object: TTFT, TPOT and the hops' mean times of the first choice, in milliseconds."""
    timing = answer.timings[0]
    return {
        "request_id": answer.request_id,
        "ttft_ms": timing.ttft_ms,
        "tpot_ms": timing.tpot_ms,
        "return_ms": timing.return_ms,
        "hops": msgspec.to_builtins(timing.hops()),
    }


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_sse(name: str, value: object) -> bytes:
    """One with a name of its own."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"
