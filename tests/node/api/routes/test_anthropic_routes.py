"""Anthropic's routes as their own client reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.dialects.anthropic import FIELDS, Anthropic
from node.errors import BadRequest, HopLost, NoRoute, Overloaded
from tests.fakes.speaking import HERMES, SpeakingNode, speaking_node
from tests.node.api.routes.strict import strictly

PATH = "/v1/messages"
BODY = {"model": "", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
TOOLS = [{"name": "look", "description": "It looks.", "input_schema": {"type": "object"}}]
CALLING = (
    "<think>h",
    "m</think>I l",
    "ook.<tool_call>",
    '{"name": "look", "arg',
    'uments": {"at": ',
    "1}}</tool_call>",
)


def message(value: object) -> Any:
    return strictly(pytest.importorskip("anthropic").types.Message, value)


def error_of(reply: Any) -> dict[str, Any]:
    told = reply.json()
    assert set(told) == {"type", "error", "request_id"}
    assert told["request_id"] == reply.headers["request-id"]
    return dict(told["error"])


def test_a_whole_answer_is_a_message() -> None:
    node = speaking_node("Hello", " there")
    reply = node.post(PATH, {**BODY, "system": [{"type": "text", "text": "Be brief."}], "metadata": {"user_id": "x"}})
    assert reply.status_code == 200
    assert reply.headers["request-id"].startswith("msg_")
    assert node.model.prompts[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    answer = message(reply.json())
    assert (answer.content[0].text, answer.stop_reason, answer.usage.output_tokens) == ("Hello there", "end_turn", 3)


def test_how_an_answer_ended_is_told_in_its_own_words() -> None:
    node = speaking_node("Hel", "lo th", "ere")
    stopped = node.post(PATH, {**BODY, "stop_sequences": ["o t", "never"]}).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "o t")
    assert stopped["content"] == [{"type": "text", "text": "Hell"}]
    assert node.post(PATH, {**BODY, "max_tokens": 1}).json()["stop_reason"] == "max_tokens"


def test_thoughts_text_and_calls_are_blocks() -> None:
    node = speaking_node(*CALLING, speech=HERMES)
    told = node.post(PATH, {**BODY, "tools": TOOLS, "thinking": {"type": "enabled", "budget_tokens": 2000}}).json()
    assert [block["type"] for block in told["content"]] == ["thinking", "text", "tool_use"]
    assert told["content"][2]["input"] == {"at": 1}
    assert told["stop_reason"] == "tool_use"
    assert node.model.prompts[-1]["options"]["enable_thinking"] is True
    (tool,) = node.model.prompts[-1]["tools"]
    assert tool["function"] == {"name": "look", "description": "It looks.", "parameters": {"type": "object"}}
    message(told)


def streamed(node: SpeakingNode, body: dict[str, object]) -> list[tuple[str, Any]]:
    events = node.events(PATH, body)
    assert all(name == data["type"] for name, data in events)
    return events


def test_a_stream_has_the_events_in_their_order() -> None:
    node = speaking_node(*CALLING, speech=HERMES)
    events = streamed(node, {**BODY, "tools": TOOLS})
    names = [name for name, _ in events]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    open_blocks: list[int] = []
    kinds: list[str] = []
    for name, data in events:
        if name == "content_block_start":
            assert not open_blocks
            open_blocks.append(data["index"])
            assert data["index"] == len(kinds)
            kinds.append(data["content_block"]["type"])
        elif name == "content_block_delta":
            assert open_blocks == [data["index"]]
        elif name == "content_block_stop":
            assert open_blocks.pop() == data["index"]
    assert kinds == ["thinking", "text", "tool_use"]
    parts = [d["delta"].get("partial_json", "") for n, d in events if n == "content_block_delta"]
    assert json.loads("".join(parts)) == {"at": 1}
    assert dict(events)["message_delta"]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_every_event_is_one_of_the_official_types() -> None:
    types = pytest.importorskip("anthropic").types
    kinds = {
        "message_start": types.RawMessageStartEvent,
        "content_block_start": types.RawContentBlockStartEvent,
        "content_block_delta": types.RawContentBlockDeltaEvent,
        "content_block_stop": types.RawContentBlockStopEvent,
        "message_delta": types.RawMessageDeltaEvent,
        "message_stop": types.RawMessageStopEvent,
    }
    for speech, texts in ((HERMES, CALLING), (HERMES, ("", "x")), (HERMES, ())):
        for name, data in streamed(speaking_node(*texts, speech=speech), {**BODY, "tools": TOOLS}):
            strictly(kinds[name], data)


def test_what_was_said_goes_back_as_blocks() -> None:
    node = speaking_node("x")
    said = [
        {"role": "user", "content": [{"type": "text", "text": "Look.", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "seen"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    assert node.post(PATH, {**BODY, "messages": said}).status_code == 200
    call = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    assert node.model.prompts[-1]["messages"] == [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "seen", "name": "look"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no"},
        {"role": "user", "content": "And?"},
    ]


def test_an_answer_that_the_client_begins_goes_on() -> None:
    node = speaking_node(" a time")
    said = [*BODY["messages"], {"role": "assistant", "content": "Once upon"}]  # type: ignore[misc]
    told = node.post(PATH, {**BODY, "messages": said}).json()
    assert told["content"][0]["text"] == " a time"
    assert node.model.prompts[-1]["prefill"] == "Once upon"


def test_tokens_are_counted_without_an_answer() -> None:
    node = speaking_node("x")
    body = {name: value for name, value in BODY.items() if name != "max_tokens"}
    assert node.post(f"{PATH}/count_tokens", body).json() == {"input_tokens": 4}
    assert node.dispatcher.generations == []
    assert node.post(f"{PATH}/count_tokens", {}).status_code == 400


deep: Any = {}
for _ in range(80):
    deep = {"x": deep}

BAD: list[tuple[dict[str, object], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": 5}]}, "content"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "text"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": 5}]}]},
        "input",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": deep}]}]},
        "nested",
    ),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "name"),
    ({"tools": [{"name": "f", "input_schema": 5}]}, "input_schema"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "look"}}, "tool_choice"),
    ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
    ({"temperature": 1.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -5}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"thinking": {"type": "perhaps"}}, "thinking"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"stream": "yes"}, "stream"),
    ({"stop": ["x"]}, "stop_sequences"),
    ({"wibble": 1}, "wibble"),
]


@pytest.mark.parametrize(("fields", "named"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_what_cannot_be_is_refused_by_name_in_its_own_form(fields: dict[str, object], named: str) -> None:
    reply = speaking_node("x").post(PATH, {**BODY, **fields})
    assert reply.status_code == 400
    told = error_of(reply)
    assert told["type"] == "invalid_request_error"
    assert named in told["message"]
    assert len(told["message"]) < 500


def test_errors_are_those_that_its_clients_look_for() -> None:
    node = speaking_node("x")
    wrong = node.post(PATH, {**BODY, "model": "claude-9"})
    assert (wrong.status_code, error_of(wrong)["type"]) == (404, "not_found_error")
    long = node.post(PATH, {**BODY, "messages": [{"role": "user", "content": "word " * 1200}]})
    assert error_of(long)["message"] == "prompt is too long: 1204 tokens > 1000 maximum"
    for fails, status, kind in (
        (Overloaded("full"), 429, "rate_limit_error"),
        (NoRoute("nobody"), 529, "overloaded_error"),
    ):
        reply = speaking_node("x", fails=fails).post(PATH, {**BODY, "stream": True})
        assert (reply.status_code, error_of(reply)["type"]) == (status, kind)
        assert reply.headers["retry-after"]
    lost = speaking_node("a", "b", fails=HopLost("attic", "0-9", "gone"), fails_after=1)
    name, data = lost.events(PATH, BODY)[-1]
    assert (name, data["error"]["type"]) == ("error", "api_error")
    elsewhere = node.post("/v1/messages/batches", {})
    assert (elsewhere.status_code, error_of(elsewhere)["type"]) == (404, "not_found_error")
    outside = node.post(PATH, BODY, origin="https://evil.example")
    assert (outside.status_code, outside.json()["error"]["type"]) == (403, "permission_error")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS.names), anything), st.booleans())
def test_no_json_does_anything_but_bad_request(fields: dict[str, object], whole: bool) -> None:
    try:
        Anthropic().parse(json.dumps({**(BODY if whole else {}), **fields}).encode())
    except BadRequest:
        return
