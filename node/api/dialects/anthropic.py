"""Anthropic's messages: the body, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw, Struct

from node.api.asking import NO_LIMIT, Ask, Chat, Tool
from node.api.dialects.anthropic_form import MessageForm, anthropic_error
from node.api.dialects.anthropic_messages import Conversation, conversation, system_text
from node.api.dialects.base import Asked
from node.api.dialects.fields import OFF, UNSUPPORTED, Fields, decoded, is_raw, seed_of, stops_of, whole_within, within
from node.api.dialects.openai_messages import refuse_too_many
from node.api.dialects.thinking import by_effort, by_switch, switched
from node.api.dialects.tools import NOT_HELD_TO, Function, defined, listed
from node.errors import BadRequest


class _Body(Struct, frozen=True):
    messages: Raw = Raw(b"null")
    system: Raw = Raw(b"null")
    tools: Raw = Raw(b"null")
    tool_choice: Raw = Raw(b"null")
    thinking: Raw = Raw(b"null")
    output_config: Raw = Raw(b"null")
    model: str | None = None
    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


FIELDS = Fields(
    _Body,
    harmless=(
        *("metadata", "service_tier", "cache_control", "context_management", "inference_geo", "speed"),
        *("anthropic_version", "anthropic_beta", "betas", "diagnostics", "user_profile_id"),
    ),
    neutral=dict.fromkeys(("mcp_servers", "container", "output_format", "fallbacks"), (OFF, UNSUPPORTED)),
    also_known={"stop": "stop_sequences", "max_completion_tokens": "max_tokens", "response_format": "nothing yet"},
)


class _Choice(Struct, frozen=True):
    type: str = ""
    disable_parallel_tool_use: bool | None = None


class _OutputConfig(Struct, frozen=True):
    effort: str | None = None
    format: Raw = Raw(b"null")


class _Definition(Struct, frozen=True):
    name: Raw = Raw(b'""')
    description: Raw = Raw(b"null")
    input_schema: Raw = Raw(b"null")
    type: Raw = Raw(b"null")


class Anthropic:
    """`POST /v1/messages`."""

    error = staticmethod(anthropic_error)

    def parse(self, body: bytes) -> Asked:
        """Check a body. Raises BadRequest with the parameter's name and what is wrong with it."""
        asked, chat, parallel = _parsed(body)
        if asked.max_tokens is None:
            raise BadRequest("max_tokens", "is missing")
        ask = Ask(
            prompts=(chat,),
            model=asked.model or "",
            max_tokens=whole_within("max_tokens", asked.max_tokens, 1, NO_LIMIT),
            stop=stops_of(asked.stop_sequences, "stop_sequences"),
            temperature=within("temperature", asked.temperature, 0.0, 1.0),
            top_p=within("top_p", asked.top_p, 0.0, 1.0, above=True),
            top_k=whole_within("top_k", asked.top_k, 0, 1_000_000),
            seed=seed_of(None),
            parallel_calls=parallel,
            id_prefix="msg_",
        )
        return Asked(ask, MessageForm(), bool(asked.stream))

    def counted(self, body: bytes) -> tuple[str, Chat]:
        """`POST /v1/messages/count_tokens`: the model that is named, and the prompt. Raises the same."""
        asked, chat, _ = _parsed(body)
        return asked.model or "", chat


def _parsed(body: bytes) -> tuple[_Body, Chat, bool]:
    refuse_too_many(body)
    FIELDS.check(body)
    asked: _Body = decoded(body, _Body)
    said: Conversation = conversation(asked.messages)
    system = system_text(asked.system)
    messages = [{"role": "system", "content": system}, *said.messages] if system else said.messages
    tools, parallel = _chosen(asked.tool_choice, _tools(asked.tools))
    options, thinks = _thinking(asked)
    return asked, Chat(messages, tools, options, thinks, said.prefill), parallel


def _tools(raw: Raw) -> list[Tool]:
    found: list[Tool] = []
    for at, each in listed(raw, "tools"):
        tool: _Definition = decoded(each, _Definition, at)
        if not (is_raw(tool.type, b"null") or is_raw(tool.type, b'"custom"')):
            raise BadRequest(f"{at}.type", "only tools of the client's own (custom) are supported")
        found.append(defined(Function(tool.name, tool.description, tool.input_schema), at, "input_schema"))
    return found


def _chosen(raw: Raw, tools: list[Tool]) -> tuple[list[Tool], bool]:
    """Which tools the prompt tells of, and whether several may be called at once."""
    if is_raw(raw, b"null"):
        return tools, True
    choice: _Choice = decoded(raw, _Choice, "tool_choice")
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "auto":
            return tools, parallel
        case "none":
            return [], parallel
        case "any" | "tool":
            raise BadRequest("tool_choice", NOT_HELD_TO)
    raise BadRequest("tool_choice.type", "must be auto or none")


def _thinking(asked: _Body) -> tuple[Mapping[str, Any], bool | None]:
    config: _OutputConfig = decoded(asked.output_config, _OutputConfig | None, "output_config") or _OutputConfig()
    if not is_raw(config.format, b"null"):
        raise BadRequest("output_config.format", UNSUPPORTED)
    options, thinks = by_effort(config.effort, "output_config.effort")
    on = by_switch(asked.thinking, "thinking")
    return (options, thinks) if on is None else ({**options, **switched(on)}, on)
