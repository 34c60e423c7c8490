"""How a chat completion is written, whole and in chunks."""

from __future__ import annotations

import time
from typing import Any

from node.api.asking import Ended
from node.api.dialects.base import SSE
from node.api.dialects.figures import latency, sse, usage
from node.api.dialects.openai_errors import openai_error
from node.api.gathering import Gathered
from node.api.service import Answer
from node.api.speech.said import Arguments, CallBegun, CallEnded, Said, Text, Thought
from node.errors import RequestError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"


class ChatForm:
    """One answer's."""

    media_type = SSE
    keep_alive = KEEP_ALIVE

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._answer: Answer | None = None
        self._base: dict[str, Any] = {}

    def whole(self, answer: Answer, choices: list[Gathered]) -> dict[str, Any]:
        return {
            "id": answer.request_id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": answer.model,
            "choices": [_choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage(answer),
            "parallax": latency(answer),
        }

    def begin(self, answer: Answer) -> bytes:
        self._answer = answer
        self._base = {
            "id": answer.request_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": answer.model,
        }
        return b"".join(
            self._chunk(choice, {"role": "assistant", "content": ""}) for choice in range(len(answer.timings))
        )

    def said(self, choice: int, said: Said) -> bytes:
        match said:
            case Text(text=text):
                return self._chunk(choice, {"content": text})
            case Thought(text=text):
                return self._chunk(choice, {"reasoning_content": text})
            case CallBegun(index=index, id=call_id, name=name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                return self._chunk(choice, {"tool_calls": [call]})
            case Arguments(index=index, text=text):
                return self._chunk(choice, {"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            case CallEnded():
                return b""

    def ended(self, choice: int, ended: Ended) -> bytes:
        assert self._answer is not None
        return self._chunk(choice, {}, ended.reason, parallax=latency(self._answer))

    def end(self) -> bytes:
        """The usage where it was asked for, and the end mark."""
        assert self._answer is not None
        if not self._include_usage:
            return DONE
        return sse({**self._base, "choices": [], "usage": usage(self._answer)}) + DONE

    def failed(self, error: RequestError) -> bytes:
        return sse(openai_error(error).body)

    def _chunk(self, choice: int, delta: dict[str, Any], finish: str | None = None, **extra: object) -> bytes:
        one = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        with_usage = {"usage": None} if self._include_usage else {}
        return sse({**self._base, "choices": [one], **with_usage, **extra})


def _choice(index: int, choice: Gathered) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.thought:
        message["reasoning_content"] = choice.thought
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.ended.reason}
