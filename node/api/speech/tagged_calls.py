"""Calls that are written with tags, one for each argument: GLM, MiniMax, Qwen3-Coder, DeepSeek's later ones.

A value that is no text by the tool's own schema is JSON; one that cannot be read as such is taken for text. Arguments
are told one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from node.api.speech.reading import Reading, Script

Schemas = Mapping[str, Mapping[str, object]]
"""Of tools, by name: the JSON schema of their arguments."""


@dataclass(frozen=True, slots=True)
class Tags:
    """One family's."""

    begin: tuple[str, ...]
    """Before the name, after the mark that opened the call; any of these."""
    name_ends: tuple[str, ...]
    key: str
    """Before an argument's name."""
    key_ends: str
    value: str
    """Between the end of the name and the value; "": nothing."""
    value_ends: str
    ends: tuple[str, ...]
    """After the last argument; each may be there."""
    trims: bool = False
    """A line's end stands before and behind the value."""


GLM = Tags(("",), ("\n", "<arg_key>"), "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", ("</tool_call>",))
MINIMAX = Tags(
    ('<invoke name="', "<invoke name='"), ('">', "'>"), "<parameter name=", ">", "", "</parameter>", ("</invoke>",)
)
DSML = Tags(
    ('<｜DSML｜invoke name="',),
    ('">',),
    "<｜DSML｜parameter name=",
    ">",
    "",
    "</｜DSML｜parameter>",
    ("</｜DSML｜invoke>",),
)
QWEN_XML = Tags(("<function=",), (">",), "<parameter=", ">", "", "</parameter>", ("</function>",), trims=True)


def tagged_call(reading: Reading, tags: Tags, schemas: Schemas, opened: str) -> Script[bool]:
    """One call, from before its name; False, with nothing taken but white space, where none comes."""
    blank = yield from reading.spaces()
    begun = ""
    for begin in tags.begin:
        if begin == "" or (yield from reading.begins(begin)):
            begun = begin
            break
    else:
        return False
    name, ended = yield from reading.until(*tags.name_ends, *tags.ends)
    if not name.strip() or (ended == "" and tags.begin != ("",)):
        reading.say(f"{opened}{blank}{begun}{name}{ended}")
        return True
    name = name.strip()
    out = reading.call(name)
    schema = schemas.get(name, {})
    properties = schema.get("properties")
    types = properties if isinstance(properties, Mapping) else {}
    count = 0
    has_key = ended == tags.key
    while ended not in tags.ends:
        if not has_key:
            yield from reading.spaces()
            if not (yield from reading.begins(tags.key)):
                break
        has_key = False
        key, _ = yield from reading.until(tags.key_ends)
        if tags.value:
            yield from reading.spaces()
            yield from reading.begins(tags.value)
        written, _ = yield from reading.until(tags.value_ends)
        if tags.trims:
            written = written.removeprefix("\n").removesuffix("\n")
        key, is_text = _key(key)
        value = json.dumps(written, ensure_ascii=False) if is_text else _json_of(written, types.get(key))
        out(f"{', ' if count else '{'}{json.dumps(key, ensure_ascii=False)}: {value}")
        count += 1
    out("}" if count else "{}")
    for end in tags.ends:
        if ended != end:
            yield from reading.spaces()
            yield from reading.begins(end)
    reading.call_ends()
    return True


def _key(written: str) -> tuple[str, bool]:
    """An argument's name, as it stands in its tag, and whether the tag itself says that its value is text."""
    written = written.strip()
    if written[:1] in ('"', "'"):
        name, _, rest = written[1:].partition(written[0])
        return name, 'string="true"' in rest
    return written, False


def _json_of(written: str, schema: object) -> str:
    """The value as JSON."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind != "string":
        try:
            return json.dumps(json.loads(written), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(written, ensure_ascii=False)
