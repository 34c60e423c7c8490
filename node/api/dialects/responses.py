"""OpenAI's responses: the body, checked at the door, and what is kept of an answer."""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct

from node.api.asking import NO_LIMIT, Ask, Chat, Message, Tool
from node.api.dialects.base import Asked
from node.api.dialects.fields import (
    OFF,
    SMALL_BYTES,
    UNSUPPORTED,
    Fields,
    absent,
    decoded,
    is_raw,
    object_of,
    seed_of,
    shown,
    text_of,
    whole_within,
    within,
)
from node.api.dialects.openai_errors import openai_error
from node.api.dialects.openai_messages import refuse_too_many
from node.api.dialects.response_store import ResponseStore
from node.api.dialects.responses_form import ResponseForm
from node.api.dialects.responses_input import input_messages
from node.api.dialects.thinking import by_effort
from node.api.dialects.tools import Function, arguments_of, call_of, chosen, defined, listed
from node.errors import BadRequest


class _Body(Struct, frozen=True):
    input: Raw = Raw(b"null")
    instructions: Raw = Raw(b"null")
    model: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    tools: Raw = Raw(b"null")
    tool_choice: Raw = Raw(b"null")
    parallel_tool_calls: bool | None = None
    reasoning: Raw = Raw(b"null")
    text: Raw = Raw(b"null")
    metadata: Raw = Raw(b"null")
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None


FIELDS = Fields(
    _Body,
    harmless=(
        *("user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "include"),
        *("stream_options", "client_metadata", "prompt_cache_options", "context_management"),
    ),
    neutral={
        "background": ((False,), UNSUPPORTED),
        "truncation": (("disabled", "auto"), UNSUPPORTED),
        "top_logprobs": ((0,), "logprobs are not supported"),
        **dict.fromkeys(("conversation", "prompt", "max_tool_calls", "moderation"), (OFF, UNSUPPORTED)),
    },
    also_known={"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"},
)


class _Reasoning(Struct, frozen=True):
    effort: str | None = None
    summary: Any = None
    generate_summary: Any = None


class _Text(Struct, frozen=True):
    format: Raw = Raw(b"null")
    verbosity: str | None = None


class _Format(Struct, frozen=True):
    type: str = "text"


class _Definition(Struct, frozen=True):
    type: Raw = Raw(b"null")
    name: Raw = Raw(b'""')
    description: Raw = Raw(b"null")
    parameters: Raw = Raw(b"null")
    strict: bool | None = None


class Responses:
    """`POST /v1/responses`."""

    error = staticmethod(openai_error)

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def parse(self, body: bytes) -> Asked:
        """Check a body. Raises BadRequest with the parameter's name and what is wrong with it."""
        refuse_too_many(body)
        FIELDS.check(body)
        asked: _Body = decoded(body, _Body)
        _refuse_formats(asked.text)
        messages = input_messages(asked.input, self._before(asked.previous_response_id))
        instructions = "" if is_raw(asked.instructions, b"null") else text_of(asked.instructions, "instructions")
        prompt = [{"role": "system", "content": instructions}, *messages] if instructions else messages
        reasoning: _Reasoning = decoded(asked.reasoning, _Reasoning | None, "reasoning") or _Reasoning()
        options, thinks = by_effort(reasoning.effort, "reasoning.effort")
        tools = _tools(asked.tools)
        ask = Ask(
            prompts=(Chat(prompt, chosen(asked.tool_choice, tools), options, thinks, where="input"),),
            model=asked.model or "",
            max_tokens=whole_within("max_output_tokens", asked.max_output_tokens, 1, NO_LIMIT),
            temperature=within("temperature", asked.temperature, 0.0, 2.0),
            top_p=within("top_p", asked.top_p, 0.0, 1.0, above=True),
            seed=seed_of(None),
            parallel_calls=asked.parallel_tool_calls is not False,
            id_prefix="resp_",
        )

        def keep(response: dict[str, Any]) -> None:
            if asked.store is not False:
                self._store.keep(response, [*messages, _said(response["output"])])

        return Asked(ask, ResponseForm(_echoed(asked, instructions, reasoning, tools), keep), bool(asked.stream))

    def _before(self, previous: str | None) -> list[Message]:
        if not previous:
            return []
        messages = self._store.messages(previous)
        if messages is None:
            raise BadRequest(
                "previous_response_id", f"there is no response {shown(previous)} here (any more); send the whole input"
            )
        return messages


def _refuse_formats(raw: Raw) -> None:
    if is_raw(raw, b"null"):
        return
    text: _Text = decoded(raw, _Text, "text")
    if not is_raw(text.format, b"null"):
        kind: _Format = decoded(text.format, _Format, "text.format")
        if kind.type != "text":
            raise BadRequest("text.format", 'only {"type": "text"} is supported')
    if text.verbosity not in (None, "medium"):
        raise BadRequest("text.verbosity", 'only "medium" is supported')


def _tools(raw: Raw) -> list[Tool]:
    found: list[Tool] = []
    for at, each in listed(raw, "tools"):
        tool: _Definition = decoded(each, _Definition, at)
        if not is_raw(tool.type, b'"function"'):
            raise BadRequest(f"{at}.type", "only tools of type function are supported")
        found.append(defined(Function(tool.name, tool.description, tool.parameters), at))
    return found


def _echoed(asked: _Body, instructions: str, reasoning: _Reasoning, tools: list[Tool]) -> dict[str, Any]:
    """What a response repeats of its request."""
    if not absent(asked.metadata) and memoryview(asked.metadata).nbytes > SMALL_BYTES:
        raise BadRequest("metadata", f"is larger than {SMALL_BYTES} bytes")
    return {
        "instructions": instructions or None,
        "metadata": {} if absent(asked.metadata) else object_of(asked.metadata, "metadata"),
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id or None,
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_output_tokens": asked.max_output_tokens,
        "tool_choice": "none" if is_raw(asked.tool_choice, b'"none"') else "auto",
        "tools": [{"type": "function", **tool["function"], "strict": False} for tool in tools],
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
    }


def _said(output: list[dict[str, Any]]) -> Message:
    """A response's items as the one message that they are for a template."""
    message: dict[str, object] = {"role": "assistant", "content": ""}
    calls: list[object] = []
    for item in output:
        match item["type"]:
            case "message":
                message["content"] = f"{message['content']}{item['content'][0]['text']}"
            case "reasoning":
                message["reasoning_content"] = item["content"][0]["text"]
            case _:
                calls.append(call_of(item["call_id"], item["name"], arguments_of(item["arguments"], "arguments")))
    if calls:
        message["tool_calls"] = calls
    return message
