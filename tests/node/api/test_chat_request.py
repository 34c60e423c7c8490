"""What a chat body may be: every field, every way to get it wrong, and no exception but `BadRequest`."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.chat_request import MAX_STOPS, MOST_MESSAGES, NO_LIMIT, ChatRequest, parse_chat_request
from node.errors import BadRequest
from node.wire.frames import Sampling

MESSAGES = [{"role": "user", "content": "Hi"}]


def parsed(**fields: object) -> ChatRequest:
    return parse_chat_request(json.dumps({"messages": MESSAGES, **fields}).encode())


def test_an_empty_request_takes_the_models_recommendation() -> None:
    request = parsed()
    assert request.sampling(0.2, 0.9, 40) == Sampling(0.2, 0.9, 40, request.seed)
    assert (request.stream, request.max_tokens, request.stop, request.model) == (False, None, (), "")


def test_what_is_said_wins() -> None:
    request = parsed(temperature=0, top_p=0.5, top_k=3, seed=11, stop="x", max_tokens=5, stream=True)
    assert request.sampling(0.2, 0.9, 40) == Sampling(0.0, 0.5, 3, 11)
    assert (request.stop, request.max_tokens, request.stream) == (("x",), 5, True)
    assert parsed(max_completion_tokens=7, max_tokens=5).max_tokens == 7
    assert parsed(seed=-1).seed == 2**63 - 1


def test_unseeded_requests_differ() -> None:
    assert parsed().seed != parsed().seed


def test_text_parts_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert parsed(messages=messages).messages == [
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
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("reasoning_effort", "low"),
        ("enable_thinking", False),
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
        ("continue_final_message", True),
        ("add_generation_prompt", False),
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
    messages = parsed(messages=[*MESSAGES, said, {**MESSAGES[0], "name": "ada"}]).messages
    assert messages[1:] == [{"role": "assistant", "content": ""}, {"role": "user", "content": "Hi", "name": "ada"}]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": None}, "content"),
        ({"role": "user"}, "content"),
        ({"content": "x"}, "role"),
        ({"role": "tool", "content": "x"}, "role.*tools"),
        ({"role": "w" * 100_000, "content": "x"}, "role"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "tool_calls"),
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
            parse_chat_request(body)
        assert time.thread_time() - begun_s < 0.5
    assert len(parse_chat_request(b'{"messages":[' + b",".join([small] * MOST_MESSAGES) + b"]}").messages) == 4096


@pytest.mark.parametrize("value", [True, "1", [], 2.1, -0.1])
def test_a_temperature_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="temperature"):
        parsed(temperature=value)


def test_too_many_stops_are_refused() -> None:
    assert len(parsed(stop=["x"] * MAX_STOPS).stop) == MAX_STOPS
    for stops in (["x"] * (MAX_STOPS + 1), [""], ["x" * 1001], {"a": 1}, [None]):
        with pytest.raises(BadRequest, match="stop"):
            parsed(stop=stops)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        *("model", "messages", "stream", "stream_options", "n", "stop", "seed", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "response_format", "logprobs", "logit_bias"),
    ]
)


@given(st.dictionaries(names, anything), st.booleans())
def test_no_json_does_anything_but_bad_request(fields: dict[str, object], with_messages: bool) -> None:
    try:
        request = parse_chat_request(
            json.dumps({**fields, **({"messages": MESSAGES} if with_messages else {})}).encode()
        )
    except BadRequest:
        return
    sampling = request.sampling(1.0, 1.0, 0)
    assert 0 <= sampling.temperature <= 2
    assert 0 < sampling.top_p <= 1
    assert 0 <= sampling.seed < 2**63


def test_numbers_that_json_does_not_have_are_refused() -> None:
    for number in (b"NaN", b"Infinity", b"1e999", b"1" * 400, b'"\xff"'):
        with pytest.raises(BadRequest):
            parse_chat_request(b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": ' + number + b"}")


@given(st.binary(max_size=100))
def test_no_bytes_do_anything_but_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_chat_request(body)
