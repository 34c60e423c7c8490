"""How Ollama's clients are answered: lines of JSON, the last of which has the figures; and errors."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import msgspec

from node.api.asking import Ended
from node.api.dialects.base import NDJSON, ErrorReply
from node.api.dialects.openai_errors import RETRY_AFTER_S
from node.api.gathering import Gathered
from node.api.service import Answer
from node.api.speech.said import Arguments, CallBegun, CallEnded, Said, Text, Thought
from node.errors import RequestError


def ollama_error(error: RequestError, request_id: str = "") -> ErrorReply:
    """A sentence and a status."""
    headers = {"retry-after": RETRY_AFTER_S[error.status]} if error.status in RETRY_AFTER_S else {}
    if request_id:
        headers["x-request-id"] = request_id
    return ErrorReply(error.status, {"error": str(error)}, headers)


def now() -> str:
    """As it is written in replies."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


class OllamaForm:
    """One answer's. A call of a tool is told when it is whole: there is no form for parts of it."""

    media_type = NDJSON
    keep_alive = b""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._answer: Answer | None = None
        self._name = ""
        self._arguments: list[str] = []
        self._ended = Ended("stop")

    def whole(self, answer: Answer, choices: list[Gathered]) -> dict[str, Any]:
        (choice,) = choices
        calls = [_call(call.name, call.arguments) for call in choice.calls]
        return {**self._told(answer, choice.text, choice.thought, calls), **_figures(answer, choice.ended)}

    def begin(self, answer: Answer) -> bytes:
        self._answer = answer
        return b""

    def said(self, choice: int, said: Said) -> bytes:
        assert self._answer is not None
        match said:
            case Text(text=text):
                return line({**self._told(self._answer, text), "done": False})
            case Thought(text=text):
                return line({**self._told(self._answer, "", text), "done": False})
            case CallBegun(name=name):
                self._name, self._arguments = name, []
                return b""
            case Arguments(text=text):
                self._arguments.append(text)
                return b""
            case CallEnded():
                call = _call(self._name, "".join(self._arguments) or "{}")
                return line({**self._told(self._answer, "", "", [call]), "done": False})

    def ended(self, choice: int, ended: Ended) -> bytes:
        self._ended = ended
        return b""

    def end(self) -> bytes:
        assert self._answer is not None
        return line({**self._told(self._answer, ""), **_figures(self._answer, self._ended)})

    def failed(self, error: RequestError) -> bytes:
        return line(ollama_error(error).body)

    def _told(
        self, answer: Answer, text: str, thought: str = "", calls: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        base = {"model": answer.model, "created_at": now()}
        if not self._chat:
            return {**base, "response": text, **({"thinking": thought} if thought else {})}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = calls
        return {**base, "message": message}


def _call(name: str, arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    return {"function": {"name": name, "arguments": value if isinstance(value, dict) else {"_unreadable": arguments}}}


def _figures(answer: Answer, ended: Ended) -> dict[str, Any]:
    """In nanoseconds."""
    timing = answer.timings[0]
    prompt_ns = int(max(0.0, timing.ttft_ms - answer.queued_ms) * 1e6)
    return {
        "done": True,
        "done_reason": "length" if ended.reason == "length" else "stop",
        "total_duration": int((perf_counter() - answer.arrived_s) * 1e9),
        "load_duration": int(answer.queued_ms * 1e6),
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": prompt_ns,
        "eval_count": answer.tokens,
        "eval_duration": int(timing.tpot_ms * max(0, timing.tokens - 1) * 1e6),
    }
