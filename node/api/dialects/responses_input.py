"""The input of OpenAI's responses: items of several kinds, brought into the messages that templates take."""

from __future__ import annotations

from msgspec import Raw, Struct

from node.api.asking import Message
from node.api.dialects.fields import begins, decoded, is_raw, shown, text_of
from node.api.dialects.openai_messages import MOST_MESSAGES, MOST_PARTS
from node.api.dialects.tools import arguments_of, call_of, name_of
from node.errors import BadRequest


class _Item(Struct, frozen=True):
    type: Raw = Raw(b'"message"')
    role: Raw = Raw(b'""')
    content: Raw = Raw(b"null")
    summary: Raw = Raw(b"null")
    call_id: Raw = Raw(b"null")
    name: Raw = Raw(b"null")
    arguments: Raw = Raw(b'""')
    output: Raw = Raw(b"null")


class _Part(Struct, frozen=True):
    type: str = ""
    text: str = ""


_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def input_messages(raw: Raw, before: list[Message]) -> list[Message]:
    """What was said before, and this.

    Raises:
        BadRequest: names the item and what is wrong with it.
    """
    if begins(raw, b'"'):
        return [*before, {"role": "user", "content": text_of(raw, "input")}]
    each_raw: list[Raw] = decoded(raw, list[Raw], "input") if begins(raw, b"[") else []
    if not each_raw:
        raise BadRequest("input", "must be text or a list with at least one item")
    if len(each_raw) + len(before) > MOST_MESSAGES:
        raise BadRequest("input", f"more than {MOST_MESSAGES} items are not taken")
    talk = _Talk(before)
    for index, each in enumerate(each_raw):
        talk.add(decoded(each, _Item, f"input[{index}]"), f"input[{index}]")
    return talk.messages()


class _Talk:
    """Messages so far. What an assistant thought, said and called one after the other is one message of it."""

    def __init__(self, before: list[Message]) -> None:
        self._messages: list[dict[str, object]] = [dict(message) for message in before]
        self._names = {
            call["id"]: call["function"]["name"]
            for message in before
            for call in message.get("tool_calls", ())  # type: ignore[attr-defined]
        }
        self._parts_left = MOST_PARTS
        self._own = False
        """The last message is the assistant's, and from this input."""

    def messages(self) -> list[Message]:
        return list(self._messages)

    def add(self, item: _Item, where: str) -> None:
        kind = text_of(item.type, f"{where}.type")
        match kind:
            case "message":
                self._message(item, where)
            case "reasoning":
                source = item.summary if is_raw(item.content, b"null") else item.content
                thought = "" if is_raw(source, b"null") else self._text(source, f"{where}.content")
                if thought:
                    self._add_to("reasoning_content", thought)
            case "function_call":
                call_id = text_of(item.call_id, f"{where}.call_id")
                name = name_of(item.name, f"{where}.name")
                written = arguments_of(text_of(item.arguments, f"{where}.arguments"), f"{where}.arguments")
                calls = self._assistant().setdefault("tool_calls", [])
                assert isinstance(calls, list)
                calls.append(call_of(call_id, name, written))
                self._names[call_id] = name
            case "function_call_output":
                call_id = text_of(item.call_id, f"{where}.call_id")
                given = self._text(item.output, f"{where}.output")
                result: dict[str, object] = {"role": "tool", "tool_call_id": call_id, "content": given}
                self._next({**result, "name": self._names[call_id]} if call_id in self._names else result)
            case _:
                raise BadRequest(f"{where}.type", f"items of type {shown(kind)} are not supported")

    def _message(self, item: _Item, where: str) -> None:
        role = text_of(item.role, f"{where}.role")
        if role not in ("system", "developer", "user", "assistant"):
            raise BadRequest(f"{where}.role", f"must be system, developer, user or assistant, not {shown(role)}")
        text = self._text(item.content, f"{where}.content")
        if role == "assistant":
            self._add_to("content", text)
        else:
            self._next({"role": "system" if role == "developer" else role, "content": text})

    def _next(self, message: dict[str, object]) -> None:
        self._messages.append(message)
        self._own = False

    def _assistant(self) -> dict[str, object]:
        if not self._own:
            self._messages.append({"role": "assistant", "content": ""})
            self._own = True
        return self._messages[-1]

    def _add_to(self, name: str, text: str) -> None:
        message = self._assistant()
        before = str(message.get(name, ""))
        message[name] = f"{before}\n{text}" if before else text

    def _text(self, raw: Raw, where: str) -> str:
        if begins(raw, b'"'):
            return text_of(raw, where)
        if not begins(raw, b"["):
            raise BadRequest(where, "must be text or a list of parts")
        parts: list[_Part] = decoded(raw, list[_Part], where)
        self._parts_left -= len(parts)
        if self._parts_left < 0:
            raise BadRequest(where, f"more than {MOST_PARTS} parts are not taken")
        for index, part in enumerate(parts):
            if part.type not in _TEXTS:
                raise BadRequest(f"{where}[{index}].type", "only parts of text are supported")
        return "".join(part.text for part in parts)
