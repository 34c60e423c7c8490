"""How Anthropic's clients are answered: a message of blocks, its events, and errors.

Of whole requests for tokens from a cache nothing is told: there are none. A thought's signature is empty, since nothing
here is encrypted; it is taken back as it is.
"""

from __future__ import annotations

import json
from typing import Any

from node.api.asking import Ended
from node.api.dialects.base import SSE, ErrorReply
from node.api.dialects.figures import named_sse
from node.api.dialects.openai_errors import RETRY_AFTER_S
from node.api.gathering import Gathered
from node.api.service import Answer
from node.api.speech.said import Arguments, CallBegun, CallEnded, Said, Text, Thought
from node.errors import RequestError, TooManyTokens

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: RequestError, request_id: str = "") -> ErrorReply:
    """What its clients turn into an exception."""
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = str(error)
    if isinstance(error, TooManyTokens):  # clients look for these words
        message = f"prompt is too long: {error.figure} > {error.context_tokens} maximum"
    headers = {"retry-after": RETRY_AFTER_S[error.status]} if error.status in RETRY_AFTER_S else {}
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id:
        headers |= {"request-id": request_id, "x-request-id": request_id}
        body["request_id"] = request_id
    return ErrorReply(529 if error.status == 503 else error.status, body, headers)


class MessageForm:
    """One answer's."""

    media_type = SSE
    keep_alive = named_sse("ping", {"type": "ping"})

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._index = -1
        self._open = ""
        """The kind of the block that is being written."""
        self._ended = Ended("stop")

    def whole(self, answer: Answer, choices: list[Gathered]) -> dict[str, Any]:
        (choice,) = choices
        content: list[dict[str, Any]] = []
        if choice.thought:
            content.append({"type": "thinking", "thinking": choice.thought, "signature": ""})
        if choice.text or not choice.calls:
            content.append({"type": "text", "text": choice.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)}
            for call in choice.calls
        ]
        return {**_message(answer, content), **_end(choice.ended), "usage": _usage(answer)}

    def begin(self, answer: Answer) -> bytes:
        self._answer = answer
        message = {**_message(answer, []), "stop_reason": None, "stop_sequence": None, "usage": _usage(answer)}
        return named_sse("message_start", {"type": "message_start", "message": message})

    def said(self, choice: int, said: Said) -> bytes:
        match said:
            case Text(text=text):
                opened = self._block("text", {"type": "text", "text": ""})
                return opened + self._delta({"type": "text_delta", "text": text})
            case Thought(text=text):
                opened = self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                return opened + self._delta({"type": "thinking_delta", "thinking": text})
            case CallBegun(id=call_id, name=name):
                closed = self._close()
                return closed + self._block("tool_use", {"type": "tool_use", "id": call_id, "name": name, "input": {}})
            case Arguments(text=text):
                return self._delta({"type": "input_json_delta", "partial_json": text})
            case CallEnded():
                return self._close()

    def ended(self, choice: int, ended: Ended) -> bytes:
        self._ended = ended
        opened = b"" if self._index >= 0 else self._block("text", {"type": "text", "text": ""})
        return opened + self._close()

    def end(self) -> bytes:
        assert self._answer is not None
        delta = {"type": "message_delta", "delta": _end(self._ended), "usage": _usage(self._answer)}
        return named_sse("message_delta", delta) + named_sse("message_stop", {"type": "message_stop"})

    def failed(self, error: RequestError) -> bytes:
        return named_sse("error", anthropic_error(error).body)

    def _block(self, kind: str, block: dict[str, Any]) -> bytes:
        """Begin one, unless such a one is open."""
        if self._open == kind and kind != "tool_use":
            return b""
        closed = self._close()
        self._index += 1
        self._open = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return closed + named_sse("content_block_start", start)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named_sse("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        signed = self._delta({"type": "signature_delta", "signature": ""}) if self._open == "thinking" else b""
        self._open = ""
        return signed + named_sse("content_block_stop", {"type": "content_block_stop", "index": self._index})


def _message(answer: Answer, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": answer.request_id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
    }


def _end(ended: Ended) -> dict[str, Any]:
    reason = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}[ended.reason]
    if ended.reason == "stop" and ended.stop is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": ended.stop if reason == "stop_sequence" else None}


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "input_tokens": answer.prompt_tokens,
        "output_tokens": answer.tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


def _object(arguments: str) -> dict[str, Any]:
    """Arguments as an object; what is none is told under a name of ours."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {"_unreadable": arguments}
    return value if isinstance(value, dict) else {"_unreadable": arguments}
