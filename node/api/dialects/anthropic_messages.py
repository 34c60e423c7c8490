"""Anthropic's messages and their blocks, brought into the form that templates take."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Raw, Struct

from node.api.asking import Message
from node.api.dialects.fields import begins, decoded, is_raw, object_of, shown, text_of
from node.api.dialects.openai_messages import MOST_MESSAGES, MOST_PARTS
from node.api.dialects.tools import call_of, name_of
from node.errors import BadRequest


@dataclass(slots=True)
class Conversation:
    """What was said."""

    messages: list[Message] = field(default_factory=list)
    prefill: str = ""
    """What the client begins the answer with: its last message is the assistant's."""


class _Message(Struct, frozen=True):
    role: Raw = Raw(b'""')
    content: Raw = Raw(b"null")


class _Block(Struct, frozen=True):
    type: Raw = Raw(b'""')
    text: Raw = Raw(b"null")
    thinking: Raw = Raw(b"null")
    id: Raw = Raw(b"null")
    name: Raw = Raw(b"null")
    input: Raw = Raw(b"{}")
    tool_use_id: Raw = Raw(b"null")
    content: Raw = Raw(b"null")
    is_error: bool | None = None


def conversation(raw: Raw) -> Conversation:
    """All messages.

    Raises:
        BadRequest: names the message and what is wrong with it.
    """
    each_raw: list[Raw] = decoded(raw, list[Raw], "messages") if begins(raw, b"[") else []
    if not each_raw:
        raise BadRequest("messages", "must be a list with at least one message")
    if len(each_raw) > MOST_MESSAGES:
        raise BadRequest("messages", f"more than {MOST_MESSAGES} are not taken")
    told, blocks, names = Conversation(), 0, dict[str, str]()
    for index, each in enumerate(each_raw):
        where = f"messages[{index}]"
        message: _Message = decoded(each, _Message, where)
        role = text_of(message.role, f"{where}.role")
        if role not in ("user", "assistant"):
            raise BadRequest(f"{where}.role", f"must be user or assistant, not {shown(role)}")
        found = _blocks(message.content, f"{where}.content")
        blocks += len(found)
        if blocks > MOST_PARTS:
            raise BadRequest(f"{where}.content", f"more than {MOST_PARTS} blocks are not taken")
        if role == "user":
            told.messages += _by_user(found, f"{where}.content", names)
        else:
            told.messages.append(_by_assistant(found, f"{where}.content", names))
    last = told.messages[-1] if told.messages else {}
    if last.get("role") == "assistant" and not last.get("tool_calls"):
        told.prefill = str(told.messages.pop()["content"])
    if not told.messages:
        raise BadRequest("messages", "must have a message of the user's")
    return told


def system_text(raw: Raw) -> str:
    """A text, or blocks of text. Raises BadRequest."""
    if is_raw(raw, b"null"):
        return ""
    return "\n".join(_text(block, f"system[{index}]") for index, block in enumerate(_blocks(raw, "system")))


def _blocks(raw: Raw, where: str) -> list[_Block]:
    if begins(raw, b'"'):
        return [_Block(Raw(b'"text"'), raw)]
    if not begins(raw, b"["):
        raise BadRequest(where, "must be text or a list of blocks")
    blocks: list[_Block] = decoded(raw, list[_Block], where)
    if len(blocks) > MOST_PARTS:
        raise BadRequest(where, f"more than {MOST_PARTS} blocks are not taken")
    return blocks


def _text(block: _Block, where: str) -> str:
    if not is_raw(block.type, b'"text"'):
        raise BadRequest(f"{where}.type", f"must be text, not {_kind(block)}")
    return text_of(block.text, f"{where}.text")


def _by_user(blocks: list[_Block], where: str, names: dict[str, str]) -> list[Message]:
    """Results of tools are messages of their own; text between them stays where it is."""
    messages: list[Message] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        if not is_raw(block.type, b'"tool_result"'):
            texts.append(_text(block, at))
            continue
        if texts:
            messages.append({"role": "user", "content": "\n".join(texts)})
            texts = []
        call_id = text_of(block.tool_use_id, f"{at}.tool_use_id")
        given = ""
        if not is_raw(block.content, b"null"):
            parts = _blocks(block.content, f"{at}.content")
            given = "\n".join(_text(part, f"{at}.content[{number}]") for number, part in enumerate(parts))
        result = {"role": "tool", "tool_call_id": call_id, "content": f"Error: {given}" if block.is_error else given}
        messages.append({**result, "name": names[call_id]} if call_id in names else result)
    if texts or not messages:
        messages.append({"role": "user", "content": "\n".join(texts)})
    return messages


def _by_assistant(blocks: list[_Block], where: str, names: dict[str, str]) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[object] = []
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        if is_raw(block.type, b'"thinking"'):
            thoughts.append(text_of(block.thinking, f"{at}.thinking"))
        elif is_raw(block.type, b'"tool_use"'):
            call_id, name = text_of(block.id, f"{at}.id"), name_of(block.name, f"{at}.name")
            names[call_id] = name
            calls.append(call_of(call_id, name, object_of(block.input, f"{at}.input")))
        elif not is_raw(block.type, b'"redacted_thinking"'):  # of another model, and nobody can read it
            texts.append(_text(block, at))
    message: dict[str, object] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _kind(block: _Block) -> str:
    return shown(decoded(block.type, str)) if begins(block.type, b'"') else "that"
