"""OpenAI's messages, checked one by one: roles, text parts, calls of tools and what these gave."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from node.api.asking import Message
from node.api.dialects.fields import SHOWN_CHARACTERS, absent, begins, decoded, is_raw, shown, text_of, unknown_field
from node.api.dialects.tools import calls_of
from node.errors import BadRequest

MOST_MESSAGES = 4096
"""A chat of so many turns has filled any context long ago, and each costs some time to check."""

MOST_PARTS = 4096
"""Of all messages together."""

ROLES = ("system", "developer", "user", "assistant", "tool")


class _Message(Struct, frozen=True, forbid_unknown_fields=True):
    role: Raw = Raw(b'""')
    content: Raw = Raw(b"null")
    tool_calls: Raw = Raw(b"null")
    tool_call_id: Raw = Raw(b"null")
    # texts that the model's own template may use
    name: Raw = Raw(b"null")
    reasoning_content: Raw = Raw(b"null")
    reasoning: Raw = Raw(b"null")
    # what servers put into answers and clients send back, and what concerns caches
    annotations: Raw = Raw(b"null")
    id: Raw = Raw(b"null")
    cache_control: Raw = Raw(b"null")
    provider_specific_fields: Raw = Raw(b"null")
    reasoning_details: Raw = Raw(b"null")
    # taken while they are empty
    function_call: Raw = Raw(b"null")
    audio: Raw = Raw(b"null")
    refusal: Raw = Raw(b"null")
    images: Raw = Raw(b"null")
    prefix: Raw = Raw(b"null")
    partial: Raw = Raw(b"null")


_OFF = ("function_call", "audio", "refusal", "images", "prefix", "partial")


class _Part(Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    text: str
    cache_control: Any = None
    """Concerns caches only."""
    annotations: Any = None
    """Of an answer that is sent back."""


def refuse_too_many(body: bytes) -> None:
    """Count before anything is decoded: a body of nothing but small messages takes forty times as long to decode.

    Only a key or a value is written so: in a longer text the quotation marks are escaped.

    Raises:
        BadRequest: more messages than any chat has.
    """
    if body.count(b'"role"') > 2 * MOST_MESSAGES:
        raise _too_many()


def messages_of(raw: Raw, where: str = "messages") -> list[Message]:
    """For a template.

    Raises:
        BadRequest: names the message and what is wrong with it.
    """
    each_raw: list[Raw] = decoded(raw, list[Raw], where) if begins(raw, b"[") else []
    if not each_raw:
        raise BadRequest(where, "must be a list with at least one message")
    if len(each_raw) > MOST_MESSAGES:
        raise _too_many()
    parts_left = MOST_PARTS
    messages: list[Message] = []
    names: dict[str, str] = {}
    for index, each in enumerate(each_raw):
        message, parts = _message(f"{where}[{index}]", each, parts_left, names)
        messages.append(message)
        parts_left -= parts
    return messages


def _too_many() -> BadRequest:
    return BadRequest("messages", f"more than {MOST_MESSAGES} are not taken")


def _message(where: str, raw: Raw, parts_left: int, names: dict[str, str]) -> tuple[dict[str, object], int]:
    """The message as templates take it, and of how many parts it was. `names` of tools by the ids of their calls."""
    if not begins(raw, b"{"):
        raise BadRequest(where, "must be an object with role and content")
    try:
        fields = msgspec.json.decode(raw, type=_Message)
    except (ValueError, RecursionError) as error:
        name = unknown_field(error) if isinstance(error, msgspec.ValidationError) else None
        place = f"{where}.{name[:SHOWN_CHARACTERS]}" if name is not None else where
        raise BadRequest(place, "is not known here; a message has role and content") from error
    role = text_of(fields.role, f"{where}.role")
    if role == "function":
        raise BadRequest(f"{where}.role", "functions are not supported; use tools")
    if role not in ROLES:
        raise BadRequest(f"{where}.role", f"must be one of {', '.join(ROLES)}, not {shown(role)}")
    for name in _OFF:
        if not absent(getattr(fields, name)):
            raise BadRequest(f"{where}.{name}", "is not supported")
    content, parts = _content(fields.content, role, f"{where}.content", parts_left)
    message: dict[str, object] = {"role": "system" if role == "developer" else role, "content": content}
    if not is_raw(fields.name, b"null"):
        message["name"] = text_of(fields.name, f"{where}.name")
    for name in ("reasoning", "reasoning_content"):
        value: Raw = getattr(fields, name)
        if begins(value, b'"') or (name == "reasoning_content" and not is_raw(value, b"null")):
            message["reasoning_content"] = text_of(value, f"{where}.{name}")
    if not absent(fields.tool_calls):
        _calls(message, fields.tool_calls, where, names)
    if role == "tool":
        _result(message, fields.tool_call_id, where, names)
    elif not absent(fields.tool_call_id):
        raise BadRequest(f"{where}.tool_call_id", "belongs into messages of role tool")
    return message, parts


def _calls(message: dict[str, object], raw: Raw, where: str, names: dict[str, str]) -> None:
    if message["role"] != "assistant":
        raise BadRequest(f"{where}.tool_calls", "belong into messages of role assistant")
    calls = calls_of(raw, f"{where}.tool_calls")
    message["tool_calls"] = calls
    names.update({call["id"]: call["function"]["name"] for call in calls})


def _result(message: dict[str, object], raw: Raw, where: str, names: dict[str, str]) -> None:
    call_id = text_of(raw, f"{where}.tool_call_id") if not is_raw(raw, b"null") else ""
    message["tool_call_id"] = call_id
    if call_id in names:
        message.setdefault("name", names[call_id])


def _content(raw: Raw, role: str, where: str, parts_left: int) -> tuple[str, int]:
    """The text, and of how many parts it was. An assistant's may be null: it called a tool, or was cut at once."""
    match bytes(memoryview(raw)[:1]):
        case b'"':
            return text_of(raw, where), 0
        case b"n" if role == "assistant":
            return "", 0
        case b"[":
            parts: list[Raw] = decoded(raw, list[Raw], where)
            if len(parts) > parts_left:
                raise BadRequest(where, f"more than {MOST_PARTS} parts are not taken")
            return "".join(_part(part, where) for part in parts), len(parts)
    raise BadRequest(where, "must be text")


def _part(raw: Raw, where: str) -> str:
    try:
        part = msgspec.json.decode(raw, type=_Part)
    except (ValueError, RecursionError) as error:
        raise BadRequest(where, "only parts of type text are supported") from error
    if part.type not in ("text", "input_text", "output_text"):
        raise BadRequest(where, "only parts of type text are supported")
    return part.text
