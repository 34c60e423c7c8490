"""OpenAI's responses as their own client reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import responses as types
from pydantic import TypeAdapter

from node.api.dialects.response_store import KEPT_S, ResponseStore
from node.api.dialects.responses import FIELDS, Responses
from node.errors import BadRequest, HopLost
from tests.fakes.speaking import HERMES, SpeakingNode, speaking_node
from tests.node.api.routes.strict import strictly

PATH = "/v1/responses"
TOOLS = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}]
CALLING = (
    "<think>h",
    "m</think>I l",
    "ook.<tool_call>",
    '{"name": "look", "arg',
    'uments": {"at": ',
    "1}}</tool_call>",
)
ALSO = ("store",)
EVENT: TypeAdapter[Any] = TypeAdapter(types.ResponseStreamEvent)


def response(value: object) -> types.Response:
    return strictly(types.Response, value, ALSO)


def test_a_whole_answer_is_a_response() -> None:
    node = speaking_node("Hello", " there")
    reply = node.post(PATH, {"input": "Hi", "instructions": "Be brief.", "metadata": {"a": "b"}, "user": "me"})
    answer = response(reply.json())
    assert answer.output_text == "Hello there"
    assert (answer.status, answer.metadata, answer.instructions) == ("completed", {"a": "b"}, "Be brief.")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3
    assert node.model.prompts[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    cut = response(node.post(PATH, {"input": "Hi", "max_output_tokens": 1}).json())
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def events(node: SpeakingNode, body: dict[str, object]) -> list[Any]:
    told = node.events(PATH, body)
    assert all(name == data["type"] for name, data in told)
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    return [EVENT.validate_python(data, strict=True) for _, data in told]


def test_thoughts_text_and_calls_are_items_whole_and_as_events() -> None:
    node = speaking_node(*CALLING, speech=HERMES)
    body: dict[str, object] = {"input": "Hi", "tools": TOOLS}
    whole = response(node.post(PATH, body).json())
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
    call = whole.output[2]
    assert isinstance(call, types.ResponseFunctionToolCall)
    assert json.loads(call.arguments) == {"at": 1}
    told = events(node, body)
    assert [event.type for event in told[:2]] == ["response.created", "response.in_progress"]
    assert told[-1].type == "response.completed"
    final = told[-1].response
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.output[2].arguments == call.arguments
    for kind, expected in (
        ("response.reasoning_text.delta", "hm"),
        ("response.output_text.delta", "I look."),
        ("response.function_call_arguments.delta", call.arguments),
    ):
        assert "".join(event.delta for event in told if event.type == kind) == expected
    added = [event for event in told if event.type == "response.output_item.added"]
    done = [event for event in told if event.type == "response.output_item.done"]
    assert [event.output_index for event in added] == [event.output_index for event in done] == [0, 1, 2]
    assert [event.item.id for event in added] == [item.id for item in final.output]


def test_an_answer_without_words_is_an_empty_message() -> None:
    node = speaking_node()
    assert response(node.post(PATH, {"input": "Hi"}).json()).output_text == ""
    assert events(node, {"input": "Hi"})[-1].response.output_text == ""


def test_items_of_what_was_said_become_the_messages_of_a_template() -> None:
    node = speaking_node("x")
    said = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look."}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "seen"},
    ]
    assert node.post(PATH, {"input": said, "include": ["reasoning.encrypted_content"]}).status_code == 200
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    assert node.model.prompts[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen", "name": "look"},
    ]


def test_a_response_can_be_gone_on_from_read_again_and_forgotten() -> None:
    node = speaking_node(*CALLING, speech=HERMES)
    first = node.post(PATH, {"input": "Hi", "instructions": "Be brief.", "tools": TOOLS}).json()
    call_id = first["output"][2]["call_id"]
    given = [{"type": "function_call_output", "call_id": call_id, "output": "seen"}]
    second = node.post(PATH, {"input": given, "previous_response_id": first["id"], "stream": True})
    assert second.status_code == 200
    messages = node.model.prompts[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"], "instructions are of one request"
    assert messages[1]["tool_calls"][0]["id"] == call_id
    assert messages[2]["name"] == "look"
    assert response(node.client.get(f"{PATH}/{first['id']}").json()).id == first["id"]
    assert node.client.delete(f"{PATH}/{first['id']}").json()["deleted"] is True
    assert node.client.get(f"{PATH}/{first['id']}").status_code == 404
    gone = node.post(PATH, {"input": "x", "previous_response_id": first["id"]})
    assert gone.json()["error"]["param"] == "previous_response_id"
    unkept = node.post(PATH, {"input": "Hi", "store": False}).json()
    assert node.client.get(f"{PATH}/{unkept['id']}").status_code == 404


def test_responses_are_kept_for_a_day_and_no_more_than_fit() -> None:
    now_s = 0.0
    store = ResponseStore(lambda: now_s, most_bytes=1000)
    for number in range(100):
        store.keep({"id": str(number), "text": "x" * 50}, [{"role": "user", "content": "y" * 50}])
    assert store.get("0") is None
    assert store.messages("99") == [{"role": "user", "content": "y" * 50}]
    assert store._bytes <= 1000
    store.keep({"id": "huge", "text": "x" * 5000}, [])
    assert store.get("huge") is None
    store.keep({"id": "last"}, [])
    now_s = KEPT_S + 1
    assert store.get("last") is None
    assert store._bytes == 0


def test_a_stream_that_fails_ends_as_a_failed_response() -> None:
    node = speaking_node("a", "b", fails=HopLost("attic", "0-9", "gone"), fails_after=1)
    last = events(node, {"input": "Hi"})[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert "attic" in last.response.error.message


BAD: list[tuple[dict[str, object], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "type"),
    ({"input": [{"role": "robot", "content": "x"}]}, "role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "content"),
    ({"input": [{"type": "function_call", "call_id": "1", "name": "", "arguments": ""}]}, "name"),
    ({"input": [{"type": "function_call_output", "call_id": 1}]}, "call_id"),
    ({"tools": [{"type": "web_search"}]}, "type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "look"}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "text.format"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"metadata": 5}, "metadata"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("fields", "named"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_what_cannot_be_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    reply = speaking_node("x").post(PATH, {"input": "Hi", **fields})
    assert reply.status_code == 400
    assert named in reply.json()["error"]["param"]


def test_there_are_no_embeddings_and_a_reason() -> None:
    reply = speaking_node("x").post("/v1/embeddings", {"model": "", "input": "x"})
    assert reply.status_code == 400
    assert "no embeddings" in reply.json()["error"]["message"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "name", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS.names), anything), st.booleans())
def test_no_json_does_anything_but_bad_request(fields: dict[str, object], whole: bool) -> None:
    try:
        Responses(ResponseStore()).parse(json.dumps({**({"input": "Hi"} if whole else {}), **fields}).encode())
    except BadRequest:
        return
