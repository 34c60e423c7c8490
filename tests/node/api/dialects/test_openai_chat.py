"""What a chat body may be: every field, every way to get it wrong, and no exception but `BadRequest`."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.asking import NO_LIMIT, Ask, Chat
from node.api.dialects.fields import MOST_NESTING, MOST_STOPS
from node.api.dialects.openai_chat import FIELDS, OpenAIChat
from node.api.dialects.openai_messages import MOST_MESSAGES
from node.errors import BadRequest
from node.wire.frames import Sampling

MESSAGES = [{"role": "user", "content": "Hi"}]


DIALECT = OpenAIChat()
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def parsed(**fields: object) -> Ask:
    return DIALECT.parse(json.dumps({"messages": MESSAGES, **fields}).encode()).ask


def chat(**fields: object) -> Chat:
    (prompt,) = parsed(**fields).prompts
    assert isinstance(prompt, Chat)
    return prompt


def test_an_empty_request_takes_the_models_recommendation() -> None:
    request = parsed()
    assert request.sampling(0.2, 0.9, 40) == Sampling(0.2, 0.9, 40, request.seed)
    assert (request.max_tokens, request.stop, request.model, request.count) == (None, (), "", 1)


def test_what_is_said_wins() -> None:
    request = parsed(temperature=0, top_p=0.5, top_k=3, seed=11, stop="x", max_tokens=5, n=3)
    assert request.sampling(0.2, 0.9, 40) == Sampling(0.0, 0.5, 3, 11)
    assert (request.stop, request.max_tokens, request.count) == (("x",), 5, 3)
    assert len({request.sampling(0.2, 0.9, 40, index).seed for index in range(3)}) == 3
    assert DIALECT.parse(json.dumps({"messages": MESSAGES, "stream": True}).encode()).stream
    assert parsed(max_completion_tokens=7, max_tokens=5).max_tokens == 7
    assert parsed(seed=-1).seed == 2**63 - 1


def test_unseeded_requests_differ() -> None:
    assert parsed().seed != parsed().seed


def test_text_parts_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert chat(messages=messages).messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]


def test_fields_that_change_nothing_are_taken() -> None:
    parsed(n=1, tools=[], logprobs=False, response_format={"type": "text"}, user="me", metadata={}, store=False)
    parsed(frequency_penalty=0, presence_penalty=0.0, logit_bias={}, tool_choice="none", stream_options=None)
    parsed(service_tier="auto", safety_identifier="x", prompt_cache_key="y", parallel_tool_calls=True, min_p=0)
    parsed(
        repetition_penalty=1, repeat_penalty=1.0, stop_token_ids=[], ignore_eos=False, best_of=1, modalities=["text"]
    )
    parsed(chat_template_kwargs={}, top_logprobs=0, prediction={"type": "content", "content": "x"}, min_tokens=0)
    parsed(add_generation_prompt=True, continue_final_message=False, function_call="auto", stream_options={})
    parsed(reasoning_effort=None, temperature=None, max_tokens=None, stop=None, seed=None, tools=None, model=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "look"}}),
        ("response_format", {"type": "json_object"}),
        ("min_p", 0.5),
        ("repetition_penalty", 1.5),
        ("repeat_penalty", 0),
        ("stop_token_ids", [0]),
        ("ignore_eos", True),
        ("min_tokens", 20),
        ("guided_json", {"type": "object"}),
        ("json_schema", {"type": "object"}),
        ("grammar", 'root ::= "x"'),
        ("structured_outputs", {"choice": ["a"]}),
        ("best_of", 3),
        ("n", True),
        ("n", 0),
        ("echo", True),
        ("logprobs", 1),
        ("modalities", ["audio"]),
        ("function_call", {"name": "f"}),
        ("functions", [{"name": "f"}]),
        ("do_sample", False),
        ("extra_body", {"x": 1}),
        ("logit_bias", {"1": 2}),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed(**{name: value})
    assert refused.value.param == name
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max_token", "max_tokens"),
        ("temprature", "temperature"),
        ("stop_sequences", "stop"),
        ("max_new_tokens", "max_tokens"),
        ("message", "messages"),
        ("Stream", "stream"),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_the_one_that_was_meant(written: str, meant: str) -> None:
    with pytest.raises(BadRequest, match=meant) as refused:
        parsed(**{written: 1})
    assert refused.value.param == written


@pytest.mark.parametrize("name", ["wibble", "x" * 100_000, "\u00e9" * 300])
def test_a_name_that_nobody_knows_is_refused_and_never_repeated_whole(name: str) -> None:
    with pytest.raises(BadRequest, match="is not known") as refused:
        parsed(**{name: 1})
    assert len(str(refused.value)) < 400


def test_no_limit_is_what_other_programs_write_for_it() -> None:
    request = parsed(max_tokens=-1, top_k=-1)
    assert (request.max_tokens, request.top_k) == (NO_LIMIT, 0)
    assert parsed(max_completion_tokens=-1, max_tokens=5).max_tokens == NO_LIMIT
    for name in ("max_tokens", "top_k"):
        with pytest.raises(BadRequest, match=name):
            parsed(**{name: -2})


def test_what_a_server_has_said_can_be_sent_back() -> None:
    said = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [], "annotations": [], "audio": None}
    messages = chat(messages=[*MESSAGES, said, {**MESSAGES[0], "name": "ada"}]).messages
    assert messages[1:] == [{"role": "assistant", "content": ""}, {"role": "user", "content": "Hi", "name": "ada"}]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": None}, "content"),
        ({"role": "user"}, "content"),
        ({"content": "x"}, "role"),
        ({"role": "function", "content": "x"}, "role.*tools"),
        ({"role": "tool", "tool_call_id": 5, "content": "x"}, "tool_call_id"),
        ({"role": "user", "tool_call_id": "1", "content": "x"}, "tool_call_id"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"role": "w" * 100_000, "content": "x"}, "role"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "tool_calls.0..function"),
        ({"role": "assistant", "content": "", "tool_calls": "x"}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "f", "arguments": ""}}]}, "id"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "", "arguments": ""}}]}, "name"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": 5}}]}, "arguments"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, "type"),
        ({"role": "user", "content": "x", "nmae": "y"}, "nmae"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "content"),
        ({"role": "user", "content": 5}, "content"),
        ("x", r"messages\[0\]"),
    ],
)
def test_a_message_that_cannot_be_is_named(message: object, named: str) -> None:
    with pytest.raises(BadRequest, match=named) as refused:
        parsed(messages=[message])
    assert len(str(refused.value)) < 400


def test_more_messages_or_parts_than_any_chat_has_are_refused_before_they_cost_time() -> None:
    small = b'{"role":"user","content":"x"}'
    part = b'{"type":"text","text":"x"}'
    for body in (
        b'{"messages":[' + b",".join([small] * 250_000) + b"]}",
        b'{"messages":[{"role":"user","content":[' + b",".join([part] * 250_000) + b"]}]}",
        b'{"messages":[' + b",".join([small.replace(b"role", b"rol\\u0065")] * 200_000) + b"]}",
        b"{" + b",".join(b'"%d":null' % number for number in range(400_000)) + b"}",
    ):
        begun_s = time.thread_time()
        with pytest.raises(BadRequest):
            DIALECT.parse(body)
        assert time.thread_time() - begun_s < 0.5
    (prompt,) = DIALECT.parse(b'{"messages":[' + b",".join([small] * MOST_MESSAGES) + b"]}").ask.prompts
    assert isinstance(prompt, Chat)
    assert len(prompt.messages) == 4096


@pytest.mark.parametrize("value", [True, "1", [], 2.1, -0.1])
def test_a_temperature_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="temperature"):
        parsed(temperature=value)


def test_too_many_stops_are_refused() -> None:
    assert len(parsed(stop=["x"] * MOST_STOPS).stop) == MOST_STOPS
    for stops in (["x"] * (MOST_STOPS + 1), [""], ["x" * 1001], {"a": 1}, [None]):
        with pytest.raises(BadRequest, match="stop"):
            parsed(stop=stops)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(FIELDS.names)


@given(st.dictionaries(names, anything), st.booleans())
def test_no_json_does_anything_but_bad_request(fields: dict[str, object], with_messages: bool) -> None:
    try:
        request = DIALECT.parse(
            json.dumps({**fields, **({"messages": MESSAGES} if with_messages else {})}).encode()
        ).ask
    except BadRequest:
        return
    sampling = request.sampling(1.0, 1.0, 0)
    assert 0 <= sampling.temperature <= 2
    assert 0 < sampling.top_p <= 1
    assert 0 <= sampling.seed < 2**63


def test_numbers_that_json_does_not_have_are_refused() -> None:
    for number in (b"NaN", b"Infinity", b"1e999", b"1" * 400, b'"\xff"'):
        with pytest.raises(BadRequest):
            DIALECT.parse(b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": ' + number + b"}")


@given(st.binary(max_size=100))
def test_no_bytes_do_anything_but_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        DIALECT.parse(body)


def test_tools_are_taken_as_templates_want_them_and_calls_and_results_go_back() -> None:
    function = {"name": "look", "description": "looks", "parameters": {"type": "object"}, "strict": True}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    said: list[dict[str, object]] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "seen"}]},
    ]
    prompt = chat(messages=[*MESSAGES, *said], tools=[{"type": "function", "function": function}], tool_choice="auto")
    del function["strict"]
    assert prompt.tools == [{"type": "function", "function": function}]
    assert prompt.messages[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "look", "arguments": {"at": 1}}}],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "seen"},
    ]
    assert chat(tools=[TOOL], tool_choice="none").tools == []
    assert not parsed(tools=[TOOL], parallel_tool_calls=False).parallel_calls


def test_what_a_model_wrote_wrongly_can_be_sent_back_to_it() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": '}}
    (_, said) = chat(messages=[*MESSAGES, {"role": "assistant", "tool_calls": [call]}]).messages
    assert said["tool_calls"] == [call]


deep: object = 1
for _ in range(MOST_NESTING + 2):
    deep = [deep]


@pytest.mark.parametrize(
    ("tool", "named"),
    [
        ({"type": "web_search"}, r"tools\[0\].type"),
        ({"type": "function"}, r"tools\[0\].function"),
        ({"function": {"name": "f"}}, r"tools\[0\].type"),
        ({"type": "function", "function": {"name": ""}}, "name"),
        ({"type": "function", "function": {"name": "a b"}}, "name"),
        ({"type": "function", "function": {"name": "x" * 129}}, "name"),
        ({"type": "function", "function": {"name": 5}}, "name"),
        ({"type": "function", "function": {"name": "f", "description": 5}}, "description"),
        ({"type": "function", "function": {"name": "f", "parameters": [1]}}, "parameters"),
        ({"type": "function", "function": {"name": "f", "parameters": {"x": deep}}}, "nested deeper"),
        (5, r"tools\[0\]"),
    ],
)
def test_a_tool_that_cannot_be_is_named(tool: object, named: str) -> None:
    with pytest.raises(BadRequest, match=named) as refused:
        parsed(tools=[tool])
    assert len(str(refused.value)) < 400


def test_more_tools_than_any_agent_has_are_refused() -> None:
    with pytest.raises(BadRequest, match="tools"):
        parsed(tools=[TOOL] * 513)


def test_thinking_is_said_to_the_template_by_every_name_that_clients_have_for_it() -> None:
    off = {"enable_thinking": False, "thinking": False}
    for fields in (
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"thinking": {"type": "disabled"}},
        {"think": False},
        {"reasoning": {"enabled": False}},
    ):
        prompt = chat(**fields)
        assert (prompt.options, prompt.thinks) == (off, False)
    assert chat(reasoning_effort="minimal").options["reasoning_effort"] == "low"
    assert chat(reasoning={"effort": "high"}).options["reasoning_effort"] == "high"
    assert chat(chat_template_kwargs={"enable_thinking": False}).options == {"enable_thinking": False}
    for name, value in (
        ("reasoning_effort", "much"),
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template_kwargs", {"bos_token": "x"}),
        ("chat_template_kwargs", [1]),
        ("thinking", {"type": "sometimes"}),
        ("enable_thinking", "no"),
    ):
        with pytest.raises(BadRequest, match=name):
            parsed(**{name: value})


def test_an_answer_can_be_begun_by_the_client() -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Once upon"}]
    assert chat(messages=begun, continue_final_message=True).prefill == "Once upon"
    assert chat(messages=begun, continue_final_message=True).messages == MESSAGES
    with pytest.raises(BadRequest, match="messages"):
        parsed(continue_final_message=True)
