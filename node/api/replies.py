"""The shapes of OpenAI's replies. Beside theirs, a finished answer carries `parallax`: where its time went."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.responses import JSONResponse, Response

from node.errors import RequestError
from node.pipeline.answer import AnswerTiming


def error_body(error: RequestError) -> dict[str, Any]:
    """What an OpenAI client turns into an exception."""
    code = type(error).__name__
    return {"error": {"message": str(error), "type": error.kind, "param": getattr(error, "param", None), "code": code}}


def error_response(error: RequestError) -> Response:
    """The same as a response, with the error's own status."""
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(error_body(error), error.status, headers)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def latency(request_id: str, timing: AnswerTiming) -> dict[str, Any]:
    """The `parallax` object: TTFT, TPOT and the hops' mean times, in milliseconds."""
    return {
        "request_id": request_id,
        "ttft_ms": timing.ttft_ms,
        "tpot_ms": timing.tpot_ms,
        "return_ms": timing.return_ms,
        "hops": msgspec.to_builtins(timing.hops()),
    }


def completion(
    request_id: str, model: str, text: str, finish: str, prompt_tokens: int, timing: AnswerTiming
) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": request_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage(prompt_tokens, timing.tokens),
        "parallax": latency(request_id, timing),
    }


class ChunkWriter:
    """Server-sent events of one streamed answer."""

    def __init__(self, request_id: str, model: str, include_usage: bool) -> None:
        self._base = {
            "id": request_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._request_id, self._include_usage = request_id, include_usage

    def role(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def text(self, text: str) -> bytes:
        return self._chunk({"content": text}, None)

    def end(self, finish: str, prompt_tokens: int, timing: AnswerTiming) -> bytes:
        """The last chunk, the usage where it was asked for, and the end mark."""
        last = self._chunk({}, finish, parallax=latency(self._request_id, timing))
        if self._include_usage:
            last += sse({**self._base, "choices": [], "usage": usage(prompt_tokens, timing.tokens)})
        return last + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], finish: str | None, **extra: object) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        with_usage = {"usage": None} if self._include_usage else {}
        return sse({**self._base, "choices": [choice], **with_usage, **extra})


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
