"""How OpenAI's responses are answered: items of output, whole and as numbered events."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from node.api.asking import Ended
from node.api.dialects.base import SSE
from node.api.dialects.figures import latency, named_sse
from node.api.dialects.openai_chat_form import KEEP_ALIVE
from node.api.dialects.openai_errors import openai_code
from node.api.gathering import Gathered
from node.api.service import Answer
from node.api.speech.said import Arguments, CallBegun, CallEnded, Said, Text, Thought
from node.errors import RequestError

Keep = Callable[[dict[str, Any]], None]
Json = dict[str, Any]


class ResponseForm:
    """One answer's."""

    media_type = SSE
    keep_alive = KEEP_ALIVE

    def __init__(self, echoed: Mapping[str, Any], keep: Keep) -> None:
        """Args:
        echoed: what a response repeats of its request.
        keep: told the response when it is whole.
        """
        self._echoed, self._keep = echoed, keep
        self._answer: Answer | None = None
        self._number = 0
        self._created_s = int(time.time())
        self._output: list[Json] = []
        self._open = False
        """The last item is being written."""
        self._parts: list[str] = []
        """Of its text or arguments."""
        self._ended = Ended("stop")

    def whole(self, answer: Answer, choices: list[Gathered]) -> Json:
        (choice,) = choices
        if choice.thought:
            self._output.append(_filled(_reasoning(), choice.thought))
        if choice.text or not choice.calls:
            self._output.append(_filled(_message(), choice.text))
        for call in choice.calls:
            self._output.append(_filled(_function_call(call.id, call.name), call.arguments))
        response = self._response(answer, choice.ended)
        self._keep(response)
        return {**response, "parallax": latency(answer)}

    def begin(self, answer: Answer) -> bytes:
        self._answer = answer
        begun = self._response(answer, None)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def said(self, choice: int, said: Said) -> bytes:
        match said:
            case Text(text=text):
                return self._written("message", _message, text)
            case Thought(text=text):
                return self._written("reasoning", _reasoning, text)
            case CallBegun(id=call_id, name=name):
                return self._close() + self._item(_function_call(call_id, name))
            case Arguments(text=text):
                self._parts.append(text)
                return self._event("response.function_call_arguments.delta", **self._place(), delta=text)
            case CallEnded():
                return self._close()

    def ended(self, choice: int, ended: Ended) -> bytes:
        self._ended = ended
        opened = b"" if self._output else self._written("message", _message, "")
        return opened + self._close()

    def end(self) -> bytes:
        assert self._answer is not None
        response = self._response(self._answer, self._ended)
        self._keep(response)
        name = "response.incomplete" if self._ended.reason == "length" else "response.completed"
        return self._event(name, response={**response, "parallax": latency(self._answer)})

    def failed(self, error: RequestError) -> bytes:
        if self._answer is None:
            return self._event("error", code=openai_code(error), message=str(error), param=None)
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failure = {"status": "failed", "error": {"code": code, "message": str(error)}}
        return self._event("response.failed", response={**self._response(self._answer, None), **failure})

    # --- parts ------------------------------------------------------------------------------------------------------

    def _written(self, kind: str, made: Callable[[], Json], text: str) -> bytes:
        """More text of an item of that kind, which begins where none is open."""
        told = b""
        if not self._open or self._output[-1]["type"] != kind:
            told = self._close() + self._item(made())
            told += self._event("response.content_part.added", **self._place(0), part=_part(kind, ""))
        if not text:
            return told
        self._parts.append(text)
        if kind == "reasoning":
            return told + self._event("response.reasoning_text.delta", **self._place(0), delta=text)
        return told + self._event("response.output_text.delta", **self._place(0), delta=text, logprobs=[])

    def _item(self, item: Json) -> bytes:
        self._output.append(item)
        self._parts, self._open = [], True
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = False
        item, text = self._output[-1], "".join(self._parts)
        kind = item["type"]
        whole = self._output[-1] = _filled(item, text if kind != "function_call" else text or "{}")
        if kind == "function_call":
            named = {"arguments": whole["arguments"], "name": whole["name"]}
            told = self._event("response.function_call_arguments.done", **self._place(), **named)
        else:
            more: Json = {} if kind == "reasoning" else {"logprobs": []}
            name = "response.reasoning_text.done" if kind == "reasoning" else "response.output_text.done"
            told = self._event(name, **self._place(0), text=text, **more)
            told += self._event("response.content_part.done", **self._place(0), part=_part(kind, text))
        return told + self._event("response.output_item.done", output_index=len(self._output) - 1, item=whole)

    def _place(self, content: int | None = None) -> Json:
        place: Json = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return place if content is None else {**place, "content_index": content}

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_sse(kind, event)

    def _response(self, answer: Answer, ended: Ended | None) -> Json:
        """As it is now; `ended` None: it goes on."""
        cut = ended is not None and ended.reason == "length"
        response: Json = {
            **self._echoed,
            "id": answer.request_id,
            "object": "response",
            "created_at": self._created_s,
            "status": "in_progress" if ended is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": answer.model,
            "output": [dict(item) for item in self._output],
            "usage": None,
        }
        if ended is not None:
            response["usage"] = {
                "input_tokens": answer.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": answer.tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.prompt_tokens + answer.tokens,
            }
        return response


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _message() -> Json:
    return {"id": _id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}


def _reasoning() -> Json:
    return {"id": _id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}


def _function_call(call_id: str, name: str) -> Json:
    call = {"call_id": call_id, "name": name, "arguments": ""}
    return {"id": _id("fc"), "type": "function_call", "status": "in_progress", **call}


def _part(kind: str, text: str) -> Json:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _filled(item: Json, text: str) -> Json:
    """The item when it is whole."""
    if item["type"] == "function_call":
        return {**item, "status": "completed", "arguments": text}
    return {**item, "status": "completed", "content": [_part(item["type"], text)]}
