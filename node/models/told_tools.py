"""What a chat template's own view of tools leaves open: templates that know none, and forms that some insist upon."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, object]

_ASKED = """You may call functions to help with the user's request. Their signatures:
<tools>
{signatures}
</tools>

To call one, write a JSON object with its name and arguments between <tool_call></tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-json-object>}}
</tool_call>"""


def without_tools(messages: Sequence[Json], tools: Sequence[Json]) -> list[dict[str, object]]:
    """The same messages for a template that knows no tools: all of it in words, as Hermes models are told."""
    said: list[dict[str, object]] = []
    result_before = False
    for message in messages:
        plain = dict(message)
        calls = plain.pop("tool_calls", None)
        plain.pop("tool_call_id", None)
        if isinstance(calls, list) and calls:
            written = [f"<tool_call>\n{_json(_call(call))}\n</tool_call>" for call in calls]
            plain["content"] = "\n".join([*filter(None, [str(plain.get("content") or "")]), *written])
        result = plain.get("role") == "tool"
        if result:
            plain = {"role": "user", "content": f"<tool_response>\n{plain.get('content')}\n</tool_response>"}
        if result and result_before:  # templates want users and assistants in turn
            said[-1]["content"] = f"{said[-1]['content']}\n{plain['content']}"
        else:
            said.append(plain)
        result_before = result
    if not tools:
        return said
    asked = _ASKED.format(signatures="\n".join(_json(tool) for tool in tools))
    if said and said[0].get("role") == "system":
        return [{**said[0], "content": f"{said[0].get('content')}\n\n{asked}"}, *said[1:]]
    return [{"role": "system", "content": asked}, *said]


def with_written_arguments(messages: Sequence[Json]) -> list[dict[str, object]] | None:
    """The arguments of calls as JSON text, which some templates join to their text as it is; None: there are none."""
    found = False
    written: list[dict[str, object]] = []
    for message in messages:
        calls: Any = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            found = True
            calls = [
                {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
                for call in calls
            ]
            written.append({**message, "tool_calls": calls})
        else:
            written.append(dict(message))
    return written if found else None


def with_thinking(messages: Sequence[Json]) -> list[dict[str, object]]:
    """Thoughts under the name that gpt-oss's template has for them; beside a call it takes them or text, not both."""
    return [
        {**message, "thinking": message["reasoning_content"]}
        if message.get("reasoning_content") and not (message.get("tool_calls") and message.get("content"))
        else dict(message)
        for message in messages
    ]


def short_ids(messages: Sequence[Json]) -> list[dict[str, object]]:
    """Ids of calls as nine letters and digits, which Mistral's templates want: each as it is, or a digest of it."""
    said: list[dict[str, object]] = []
    for message in messages:
        short = dict(message)
        calls: Any = short.get("tool_calls")
        if isinstance(calls, list):
            short["tool_calls"] = [{**call, "id": _short(str(call.get("id", "")))} for call in calls]
        if "tool_call_id" in short:
            short["tool_call_id"] = _short(str(short["tool_call_id"]))
        said.append(short)
    return said


def _short(call_id: str) -> str:
    if len(call_id) == 9 and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _call(call: Any) -> dict[str, object]:
    function = call["function"]
    return {"name": function["name"], "arguments": function["arguments"]}


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
