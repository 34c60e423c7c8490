"""Calls that are JSON objects with a name and arguments: Hermes and Qwen, Llama 3, Mistral; DeepSeek and Kimi, which
put the name before the object.

A call is told as soon as its name is there, its arguments as they come. What is no call after all is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from node.api.speech.reading import Reading, Script

_NAME = r'\s*"name"\s*:\s*"(?P<name>(?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
_OBJECT = re.compile(r"\{" + _NAME)
_LLAMA_OBJECT = re.compile(r'\{(?:\s*"type"\s*:\s*"function"\s*,)?' + _NAME)
_MISTRAL_END = re.compile(r'\s*(?:,\s*"id"\s*:\s*"[^"]*"\s*)?\}')
_MISTRAL_NAME = re.compile(r"\s*(?P<name>[\w.\-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")
_DEEPSEEK = re.compile(
    r"\s*(?:function<｜tool▁sep｜>(?P<old>[^\n<]+)\n```json\s*|(?P<name>[^\n<]+)<｜tool▁sep｜>\s*)(?=\{)"
)
_KIMI = re.compile(r"\s*(?P<id>(?:functions\.)?(?P<name>[^\s<:]+)(?::\d+)?)\s*<\|tool_call_argument_begin\|>\s*(?=\{)")


def hermes_call(reading: Reading, opened: str) -> Script[None]:
    """After `<tool_call>`: an object, up to `</tool_call>`."""
    blank = yield from reading.spaces()
    match = yield from reading.matches(_OBJECT)
    if match is None:
        inside, closed = yield from reading.until("</tool_call>")
        _whole(reading, inside, f"{opened}{blank}{inside}{closed}")
        return
    yield from _arguments(reading, _spelled(match["name"]))
    yield from _closing(reading, "}", "</tool_call>")


def llama_calls(reading: Reading, names: Collection[str]) -> Script[None]:
    """An answer that begins with an object which names one of the tools; more may follow after semicolons."""
    blank = yield from reading.spaces()
    tagged = yield from reading.begins("<|python_tag|>")
    first = True
    while True:
        yield from reading.spaces()
        if not (yield from reading.at_least(1)) or not reading.here.startswith("{"):
            break
        match = yield from reading.matches(_LLAMA_OBJECT)
        if match is None:
            break
        name = _spelled(match["name"])
        if name not in names and not tagged:
            reading.say(blank + match[0])
            return
        yield from _arguments(reading, name)
        yield from _closing(reading, "}")
        first = False
        yield from reading.spaces()
        if not (yield from reading.begins(";")):
            return
    if first:
        reading.say(blank)


def mistral_calls(reading: Reading, opened: str) -> Script[None]:
    """After `[TOOL_CALLS]`: a list of objects, or a name and its arguments."""
    yield from reading.spaces()
    if not (yield from reading.begins("[")):
        match = yield from reading.matches(_MISTRAL_NAME)
        if match is None:
            reading.say(opened)
        else:
            yield from _arguments(reading, match["name"])
        return
    while True:
        yield from reading.spaces()
        match = yield from reading.matches(_OBJECT)
        if match is None:
            inside, closed = yield from reading.until("]")
            _whole(reading, f"[{inside}]", f"{opened}[{inside}{closed}")
            return
        yield from _arguments(reading, _spelled(match["name"]))
        yield from reading.matches(_MISTRAL_END)
        yield from reading.spaces()
        if not (yield from reading.begins(",")):
            yield from reading.begins("]")
            return


def deepseek_call(reading: Reading, opened: str) -> Script[None]:
    """After `<｜tool▁call▁begin｜>`: a name, a mark, and arguments, which may be fenced."""
    match = yield from reading.matches(_DEEPSEEK)
    if match is None:
        reading.say(opened)
        return
    yield from _arguments(reading, (match["old"] or match["name"]).strip())
    yield from _closing(reading, "```", "<｜tool▁call▁end｜>")


def kimi_call(reading: Reading, opened: str) -> Script[None]:
    """After `<|tool_call_begin|>`: an id with the name in it, a mark, and arguments."""
    match = yield from reading.matches(_KIMI)
    if match is None:
        reading.say(opened)
        return
    yield from _arguments(reading, match["name"], match["id"])
    yield from _closing(reading, "<|tool_call_end|>")


def _arguments(reading: Reading, name: str, call_id: str = "") -> Script[None]:
    yield from reading.json_value(reading.call(name, call_id))
    reading.call_ends()


def _closing(reading: Reading, *marks: str) -> Script[None]:
    for mark in marks:
        yield from reading.spaces()
        yield from reading.begins(mark)


def _spelled(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:
        return name


def _whole(reading: Reading, inside: str, written: str) -> None:
    """Calls in a text that has ended; where it has none, it is said as it was written."""
    try:
        value = json.loads(inside)
    except (ValueError, RecursionError):
        reading.say(written)
        return
    found = [_call_of(each) for each in (value if isinstance(value, list) else [value])]
    if not found or None in found:
        reading.say(written)
        return
    for each in found:
        assert each is not None
        reading.call(each[0])(each[1])
        reading.call_ends()


def _call_of(value: object) -> tuple[str, str] | None:
    """Name and arguments, where this is a call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
