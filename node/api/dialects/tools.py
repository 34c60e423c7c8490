"""Definitions and calls of tools as clients write them, brought into the form that templates take.

A call's arguments are what the model writes: until an answer can be held to a grammar, nothing here promises that a
model calls a tool, or that its arguments fit the schema. So a choice that would promise it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from node.api.asking import Tool
from node.api.dialects.fields import absent, begins, decoded, is_raw, object_of, require_shallow, shown, text_of
from node.errors import BadRequest

MOST_TOOLS = 512
NAME = re.compile(r"[\w.:/\-]{1,128}")
NOT_HELD_TO = "a model cannot be held to calling a tool yet; send auto or none"

Json = dict[str, Any]


class Function(Struct, frozen=True):
    """OpenAI's. Others write the same three things under other names."""

    name: Raw = Raw(b'""')
    description: Raw = Raw(b"null")
    parameters: Raw = Raw(b"null")


class _Tool(Struct, frozen=True):
    type: Raw = Raw(b"null")
    function: Raw = Raw(b"null")


def tools_of(raw: Raw, where: str = "tools") -> list[Tool]:
    """OpenAI's definitions of functions, for a chat.

    Raises:
        BadRequest: names what cannot be.
    """
    found: list[Tool] = []
    for at, each in listed(raw, where):
        tool: _Tool = decoded(each, _Tool, at)
        if not is_raw(tool.type, b'"function"'):
            raise BadRequest(f"{at}.type", f'only "function" is supported, not {_kind(tool.type)}')
        function: Function = decoded(tool.function, Function, f"{at}.function")
        found.append(defined(function, f"{at}.function"))
    return found


def listed(raw: Raw, where: str) -> list[tuple[str, Raw]]:
    """Each definition, and where it stands. Raises BadRequest."""
    if absent(raw):
        return []
    if not begins(raw, b"["):
        raise BadRequest(where, "must be a list")
    each_raw: list[Raw] = decoded(raw, list[Raw], where)
    if len(each_raw) > MOST_TOOLS:
        raise BadRequest(where, f"more than {MOST_TOOLS} are not taken")
    return [(f"{where}[{index}]", each) for index, each in enumerate(each_raw)]


def defined(function: Function, where: str, schema: str = "parameters") -> Tool:
    """One definition in the form that templates take. `schema` is the dialect's name for its parameters."""
    parameters = {"type": "object", "properties": {}}
    if not absent(function.parameters):
        parameters = object_of(function.parameters, f"{where}.{schema}")
    description = "" if is_raw(function.description, b"null") else text_of(function.description, f"{where}.description")
    named = {"name": name_of(function.name, f"{where}.name"), "description": description, "parameters": parameters}
    return {"type": "function", "function": named}


def name_of(raw: Raw, where: str) -> str:
    """A tool's name. Raises BadRequest."""
    name = text_of(raw, where)
    if NAME.fullmatch(name) is None:
        raise BadRequest(where, f"must be 1 to 128 letters, digits or _ - . : /, not {shown(name)}")
    return name


def schemas(tools: Sequence[Tool]) -> Mapping[str, Mapping[str, object]]:
    """The schema of each tool's arguments, by its name."""
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}


def chosen(raw: Raw, tools: list[Tool], where: str = "tool_choice") -> list[Tool]:
    """OpenAI's `tool_choice`: which tools the prompt tells of.

    Raises:
        BadRequest: it wants to hold the model to a call.
    """
    if is_raw(raw, b"null") or is_raw(raw, b'"auto"'):
        return tools
    if is_raw(raw, b'"none"'):
        return []
    if is_raw(raw, b'"required"') or is_raw(raw, b'"any"') or begins(raw, b"{"):
        raise BadRequest(where, NOT_HELD_TO)
    raise BadRequest(where, "must be none or auto")


class _Call(Struct, frozen=True):
    id: Raw = Raw(b'""')
    type: Raw = Raw(b'"function"')
    function: Raw = Raw(b"null")


class _Called(Struct, frozen=True):
    name: Raw = Raw(b'""')
    arguments: Raw = Raw(b'""')


MOST_CALLS = 1024
"""In one message."""


def calls_of(raw: Raw, where: str) -> list[Json]:
    """The calls in a message of OpenAI's that is sent back, for the template. Raises BadRequest."""
    if not begins(raw, b"["):
        raise BadRequest(where, "must be a list")
    each_raw: list[Raw] = decoded(raw, list[Raw], where)
    if len(each_raw) > MOST_CALLS:
        raise BadRequest(where, f"more than {MOST_CALLS} are not taken")
    calls = []
    for index, each in enumerate(each_raw):
        at = f"{where}[{index}]"
        call: _Call = decoded(each, _Call, at)
        if not is_raw(call.type, b'"function"'):
            raise BadRequest(f"{at}.type", f'only "function" is supported, not {_kind(call.type)}')
        called: _Called = decoded(call.function, _Called, f"{at}.function")
        name = name_of(called.name, f"{at}.function.name")
        given = called.arguments
        arguments = (
            arguments_of(text_of(given, f"{at}.function.arguments"), f"{at}.function.arguments")
            if begins(given, b'"')
            else object_of(given, f"{at}.function.arguments")
        )
        calls.append(call_of(text_of(call.id, f"{at}.id"), name, arguments))
    return calls


def call_of(call_id: str, name: str, arguments: object) -> Json:
    """A call in the form that templates take."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def arguments_of(text: str, where: str) -> object:
    """Arguments as an object; what a model wrote wrongly stays the text that it is. Raises BadRequest."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return text
    require_shallow(value, where)
    return value if isinstance(value, dict) else text


def _kind(raw: Raw) -> str:
    return shown(msgspec.json.decode(raw)) if begins(raw, b'"') else "that"
