"""What a chat body may be: every field, every way to get it wrong, and no exception but `BadRequest`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.chat_request import MAX_STOPS, ChatRequest, parse_chat_request
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
