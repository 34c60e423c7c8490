"""Completions of plain text, as before there were chats: the body, and how it is answered."""

from __future__ import annotations

import time
from typing import Any

from msgspec import Raw, Struct

from node.api.asking import MOST_SEQUENCES, Ask, Ended, Plain
from node.api.dialects.base import SSE, Asked
from node.api.dialects.fields import OFF, UNSUPPORTED, Fields, begins, decoded, seed_of, stops_of, whole_within, within
from node.api.dialects.figures import latency, sse, usage
from node.api.dialects.openai_chat import StreamOptions, limit_of
from node.api.dialects.openai_chat_form import DONE, KEEP_ALIVE
from node.api.dialects.openai_errors import openai_error
from node.api.dialects.openai_names import ALSO_KNOWN, HARMLESS, SAMPLING
from node.api.gathering import Gathered
from node.api.service import Answer
from node.api.speech.said import Said, Text
from node.errors import BadRequest, RequestError

DEFAULT_MAX_TOKENS = 16
"""What the reference says of a request that names no limit."""


class _Body(Struct, frozen=True):
    prompt: Raw = Raw(b"null")
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    n: int | None = None
    best_of: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


FIELDS = Fields(
    _Body,
    harmless=HARMLESS,
    neutral={
        **SAMPLING,
        "logprobs": ((False,), "logprobs are not supported"),
        "suffix": (("",), "the model cannot fill in before a suffix; leave it out"),
        "response_format": (({"type": "text"},), 'only {"type": "text"} is supported'),
        "prompt_embeds": (OFF, UNSUPPORTED),
        "add_special_tokens": ((True,), UNSUPPORTED),
    },
    also_known={**ALSO_KNOWN, "messages": "prompt, or /v1/chat/completions", "max_completion_tokens": "max_tokens"},
)


class OpenAICompletions:
    """`POST /v1/completions`."""

    error = staticmethod(openai_error)

    def parse(self, body: bytes) -> Asked:
        """Check a body. Raises BadRequest with the parameter's name and what is wrong with it."""
        FIELDS.check(body)
        asked: _Body = decoded(body, _Body)
        prompts = _prompts(asked.prompt)
        count = whole_within("n", asked.n, 1, MOST_SEQUENCES) or 1
        if len(prompts) * count > MOST_SEQUENCES:
            raise BadRequest("n", f"at most {MOST_SEQUENCES} answers in all, for {len(prompts)} prompts together")
        if asked.best_of is not None and asked.best_of != count:
            raise BadRequest("best_of", "the best cannot be chosen without logprobs, which are not supported; use n")
        ask = Ask(
            prompts=tuple(Plain(prompt) for prompt in prompts),
            model=asked.model or "",
            count=count,
            max_tokens=DEFAULT_MAX_TOKENS if asked.max_tokens is None else limit_of(asked.max_tokens, "max_tokens"),
            stop=stops_of(asked.stop),
            temperature=within("temperature", asked.temperature, 0.0, 2.0),
            top_p=within("top_p", asked.top_p, 0.0, 1.0, above=True),
            top_k=0 if asked.top_k == -1 else whole_within("top_k", asked.top_k, 0, 1_000_000),
            seed=seed_of(asked.seed),
            id_prefix="cmpl-",
        )
        usage_too = bool(asked.stream_options and asked.stream_options.include_usage)
        return Asked(ask, CompletionForm(usage_too, bool(asked.echo)), bool(asked.stream))


def _prompts(raw: Raw) -> list[str | tuple[int, ...]]:
    """A text, token ids, or a list of either. Raises BadRequest."""
    if begins(raw, b"n"):
        raise BadRequest("prompt", "is missing; it must be text or token ids")
    given: Any = decoded(raw, str | list[int | str | list[int]], "prompt")
    if isinstance(given, str):
        return [given]
    if not given:
        raise BadRequest("prompt", "must not be empty")
    if all(isinstance(each, int) for each in given):
        return [tuple(given)]
    if all(isinstance(each, str) for each in given):
        found: list[str | tuple[int, ...]] = list(given)
    elif all(isinstance(each, list) for each in given):
        found = [tuple(each) for each in given]
    else:
        raise BadRequest("prompt", "must be text, token ids, or a list of one of them")
    if len(found) > MOST_SEQUENCES:
        raise BadRequest("prompt", f"more than {MOST_SEQUENCES} are not taken")
    return found


class CompletionForm:
    """How one request's completions are written."""

    media_type = SSE
    keep_alive = KEEP_ALIVE

    def __init__(self, include_usage: bool, echo: bool) -> None:
        self._include_usage, self._echo = include_usage, echo
        self._answer: Answer | None = None
        self._base: dict[str, Any] = {}

    def whole(self, answer: Answer, choices: list[Gathered]) -> dict[str, Any]:
        prompts = answer.prompts if self._echo else [""] * len(choices)
        told = [
            _choice(index, prompts[index] + choice.text, choice.ended.reason) for index, choice in enumerate(choices)
        ]
        return {**_base(answer), "choices": told, "usage": usage(answer), "parallax": latency(answer)}

    def begin(self, answer: Answer) -> bytes:
        self._answer, self._base = answer, _base(answer)
        if not self._echo:
            return b""
        return b"".join(self._chunk(choice, prompt) for choice, prompt in enumerate(answer.prompts))

    def said(self, choice: int, said: Said) -> bytes:
        return self._chunk(choice, said.text) if isinstance(said, Text) else b""

    def ended(self, choice: int, ended: Ended) -> bytes:
        assert self._answer is not None
        return self._chunk(choice, "", ended.reason, parallax=latency(self._answer))

    def end(self) -> bytes:
        assert self._answer is not None
        if not self._include_usage:
            return DONE
        return sse({**self._base, "choices": [], "usage": usage(self._answer)}) + DONE

    def failed(self, error: RequestError) -> bytes:
        return sse(openai_error(error).body)

    def _chunk(self, choice: int, text: str, finish: str | None = None, **extra: object) -> bytes:
        with_usage = {"usage": None} if self._include_usage else {}
        return sse({**self._base, "choices": [_choice(choice, text, finish)], **with_usage, **extra})


def _base(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.request_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": answer.model,
    }


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
