"""OpenAI's routes as their own client reads them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
import trio
from openai import types
from openai.types import chat as chat_types

from node.errors import HopLost, NoRoute, Overloaded
from node.wire.events import PlanImpossible
from tests.fakes.speaking import HERMES, SpeakingNode, speaking_node
from tests.node.api.routes.strict import strictly

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALLING = (
    "<think>h",
    "m</think>I l",
    "ook.<tool_call>",
    '{"name": "look", "argu',
    'ments": {"at": ',
    "1}}</tool_call>",
)


def test_a_whole_answer_is_a_chat_completion() -> None:
    node = speaking_node("Hello", " there")
    reply = node.post(CHAT, {"messages": MESSAGES, "user": "me", "metadata": {"a": "b"}, "store": True})
    answer = strictly(chat_types.ChatCompletion, reply.json())
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello there", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 3)
    assert reply.headers["x-request-id"] == answer.id
    assert reply.headers["x-parallax-route"] == "desk0001=0-29"
    assert "ttft;dur=" in reply.headers["server-timing"]
    assert "hop0;" in reply.headers["server-timing"]


def test_a_streamed_answer_is_chunks_of_one_and_tells_its_usage_only_where_asked() -> None:
    node = speaking_node("Hello", " there")
    for asked in (True, False):
        chunks = [
            strictly(chat_types.ChatCompletionChunk, chunk)
            for chunk in node.chunks(CHAT, {"messages": MESSAGES, "stream_options": {"include_usage": asked}})
        ]
        texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(texts) == "Hello there"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len({chunk.id for chunk in chunks}) == 1
        assert [bool(chunk.usage) for chunk in chunks] == [*[False] * (len(chunks) - 1), asked]
        assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop"


def test_several_answers_share_a_prompt_and_each_has_random_numbers_of_its_own() -> None:
    node = speaking_node("a", "b")
    answer = strictly(chat_types.ChatCompletion, node.post(CHAT, {"messages": MESSAGES, "n": 3, "seed": 7}).json())
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["ab"] * 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 9)
    assert len({generation.sampling.seed for generation in node.dispatcher.generations}) == 3
    chunks = [strictly(chat_types.ChatCompletionChunk, c) for c in node.chunks(CHAT, {"messages": MESSAGES, "n": 3})]
    for index in range(3):
        parts = [c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(parts) == "ab"
    assert node.dispatcher.open == 0


def test_one_of_several_answers_that_fails_ends_them_all() -> None:
    lost = HopLost("attic", "0-9", "it went away")
    node = speaking_node("a", "b", fails=lost, fails_after=1)
    reply = node.post(CHAT, {"messages": MESSAGES, "n": 3})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "server_error")
    assert node.dispatcher.open == 0


def test_calls_of_tools_and_thoughts_are_apart_from_the_text() -> None:
    node = speaking_node(*CALLING, speech=HERMES)
    body = {"messages": MESSAGES, "tools": TOOLS}
    (choice,) = strictly(chat_types.ChatCompletion, node.post(CHAT, body).json()).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    assert getattr(choice.message, "reasoning_content", None) == "hm"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": 1})
    assert node.model.prompts[-1]["tools"][0]["function"]["name"] == "look"

    chunks = [strictly(chat_types.ChatCompletionChunk, chunk) for chunk in node.chunks(CHAT, body)]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [each for delta in deltas for each in delta.tool_calls or []]
    assert calls[0].id
    assert calls[0].function is not None
    assert calls[0].function.name == "look"
    assert {each.index for each in calls} == {0}
    arguments = [each.function.arguments or "" for each in calls if each.function]
    assert json.loads("".join(arguments)) == {"at": 1}
    assert len(arguments) > 2, "they come as the model writes them"
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "hm"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_client_that_wants_one_call_gets_one() -> None:
    two = (*CALLING, '<tool_call>{"name": "look", "arguments": {}}</tool_call>')
    node = speaking_node(*two, speech=HERMES)
    for parallel, count in ((True, 2), (False, 1)):
        reply = node.post(CHAT, {"messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": parallel})
        (choice,) = strictly(chat_types.ChatCompletion, reply.json()).choices
        assert len(choice.message.tool_calls or []) == count
        assert choice.finish_reason == "tool_calls"
    assert node.dispatcher.open == 0


def test_stop_texts_end_an_answer_across_the_borders_of_tokens() -> None:
    node = speaking_node("Hel", "lo th", "ere", " more")
    stops = [f"never{number}" for number in range(15)] + ["o the"]
    (choice,) = node.post(CHAT, {"messages": MESSAGES, "stop": stops}).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hell", "stop")
    assert node.post(CHAT, {"messages": MESSAGES, "stop": [*stops, "x"]}).status_code == 400


def test_completions_of_text_are_what_their_client_expects() -> None:
    node = speaking_node(" world", "!")
    answer = strictly(types.Completion, node.post(TEXT, {"prompt": "Hello", "echo": True}).json())
    assert [choice.text for choice in answer.choices] == ["Hello world!"]
    many = strictly(types.Completion, node.post(TEXT, {"prompt": ["a", "b c"], "n": 2, "max_tokens": 1}).json())
    assert [(choice.index, choice.text, choice.finish_reason) for choice in many.choices] == [
        (index, " world", "length") for index in range(4)
    ]
    ids = strictly(types.Completion, node.post(TEXT, {"prompt": [[5, 6], [7]], "echo": True}).json())
    assert [choice.text for choice in ids.choices] == ["5 6 world!", "7 world!"]
    assert node.dispatcher.generations[-1].prompt in ((5, 6), (7,))
    assert node.dispatcher.generations[0].max_new_tokens == 16, "the reference's own default"
    wanted = {"prompt": "Hello", "echo": True, "max_tokens": -1, "stream_options": {"include_usage": True}}
    told = node.chunks(TEXT, wanted)
    for choice in (choice for chunk in told for choice in chunk["choices"]):
        choice["finish_reason"] = choice["finish_reason"] or "stop"  # their type knows no choice that goes on
    chunks = [strictly(types.Completion, chunk) for chunk in told]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Hello world!"
    assert chunks[-1].usage is not None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 2}, "n"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "stream": 1}, "stream"),
    ],
)
def test_a_completion_that_cannot_be_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    reply = speaking_node("x").post(TEXT, fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, named)


def test_every_route_is_there_without_its_version_too() -> None:
    node = speaking_node("x")
    assert node.post("/chat/completions", {"messages": MESSAGES}).status_code == 200
    assert node.post("/completions", {"prompt": "a"}).status_code == 200
    for path in ("/models", "/v1/models"):
        (model,) = node.client.get(path).json()["data"]
        assert strictly(types.Model, model) == strictly(types.Model, node.client.get(f"{path}/{model['id']}").json())


def error_of(reply: Any) -> dict[str, Any]:
    told = reply.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    return dict(told)


def test_errors_are_those_that_clients_look_for() -> None:
    node = speaking_node("x")
    for reply in (
        node.post(CHAT, {"messages": MESSAGES, "model": "gpt-5"}),
        node.client.get("/v1/models/gpt-5"),
    ):
        assert (reply.status_code, error_of(reply)["code"]) == (404, "model_not_found")
    long = node.post(CHAT, {"messages": [{"role": "user", "content": "word " * 1200}]})
    assert (long.status_code, error_of(long)["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 1000 tokens" in error_of(long)["message"]
    assert "1204 tokens" in error_of(long)["message"]
    huge = node.post(CHAT, {"messages": [{"role": "user", "content": "x" * 100_000}]})
    assert error_of(huge)["code"] == "context_length_exceeded"
    for fails, status, code in (
        (Overloaded("full"), 429, "rate_limit_exceeded"),
        (NoRoute("nobody"), 503, "service_unavailable"),
    ):
        for stream in (False, True):
            body = {"messages": MESSAGES, "stream": stream}
            reply = speaking_node("x", fails=fails).post(CHAT, body)
            assert (reply.status_code, error_of(reply)["code"]) == (status, code)
            assert int(reply.headers["retry-after"]) > 0
    missing = node.post("/v1/wibble", {})
    assert (missing.status_code, error_of(missing)["code"]) == (404, None)
    wrong = node.client.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(wrong)["type"] == "invalid_request_error"


def test_a_stream_that_fails_ends_with_an_error() -> None:
    node = speaking_node("a", "b", fails=HopLost("attic", "0-9", "it went away"), fails_after=1)
    reply = node.post(CHAT, {"messages": MESSAGES, "stream": True})
    assert reply.status_code == 200
    last = json.loads(reply.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert "attic" in last["error"]["message"]


def test_a_model_that_always_thinks_cannot_be_told_not_to() -> None:
    from dataclasses import replace

    node = speaking_node("x", speech=replace(HERMES, switches=frozenset()))
    refused = node.post(CHAT, {"messages": MESSAGES, "reasoning_effort": "none"})
    assert "thinks before every answer" in error_of(refused)["message"]
    node = speaking_node("x", speech=HERMES)
    assert node.post(CHAT, {"messages": MESSAGES, "reasoning_effort": "none"}).status_code == 200
    assert node.model.prompts[-1]["options"]["enable_thinking"] is False


def test_bodies_come_as_curl_and_agents_send_them() -> None:
    node = speaking_node("x")
    body = json.dumps({"messages": MESSAGES}).encode()
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert node.client.post(CHAT, content=body, headers=form).status_code == 200
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    assert node.client.post(CHAT, content=gzip.compress(body), headers=packed).status_code == 200
    refused = node.client.post(CHAT, content=body, headers={**packed, "content-encoding": "br"})
    assert refused.status_code == 415
    assert "gzip" in error_of(refused)["message"]


def test_health_is_no_success_until_the_node_can_serve() -> None:
    node = speaking_node("x")
    assert node.client.get("/health").status_code == 200
    node.control.in_force = None
    waiting = node.client.get("/health")
    assert (waiting.status_code, waiting.json()["status"]) == (503, "waiting")
    assert waiting.json()["reason"]
    assert waiting.headers["retry-after"]
    node.service.journal.append(PlanImpossible("the model needs more memory"))  # or questions would wait for a plan
    for path, body in ((CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "x"}), ("/tokenize", {"content": "x"})):
        assert node.post(path, body).status_code == 503


def test_words_are_told_as_other_servers_tell_them() -> None:
    node = speaking_node("x")
    assert node.post("/tokenize", {"content": "a bb"}).json()["tokens"] == [3, 4]
    assert node.post("/tokenize", {"content": "a bb", "add_special": True}).json()["tokens"] == [1, 3, 4]
    assert node.post("/tokenize", {"prompt": "a bb"}).json()["count"] == 3
    pieces = node.post("/tokenize", {"content": "a", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": 3, "piece": "3"}]
    assert node.post("/tokenize", {"messages": MESSAGES}).json()["count"] == 4
    assert node.post("/detokenize", {"tokens": [3, 4]}).json()["content"] == "3 4"
    assert node.post("/detokenize", {"tokens": []}).json()["content"] == ""
    assert "Hi" in node.post("/apply-template", {"messages": MESSAGES, "tools": TOOLS}).json()["prompt"]
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"content": 5}),
        ("/tokenize", {"wibble": 5}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/apply-template", {}),
    ):
        refused = node.post(path, body)
        assert refused.status_code == 400
        assert error_of(refused)["message"]


def test_nothing_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="node")
    node = speaking_node("the answer")
    secret = "my secret"
    for body in ({"messages": [{"role": "user", "content": secret}]}, {"messages": secret}, {secret: 1}):
        node.post(CHAT, body)
        node.post(CHAT, {**body, "stream": True})
    assert secret not in caplog.text
    assert "the answer" not in caplog.text


def scope_of(path: str) -> dict[str, Any]:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    return scope | {"headers": headers, "root_path": "", "scheme": "http", "server": None, "client": None}


def test_a_stream_in_which_the_node_itself_fails_says_so() -> None:
    node = speaking_node("a", "b", fails=ZeroDivisionError("a bug"), fails_after=1)
    sent: list[bytes] = []
    body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
    asked: list[None] = []

    async def receive() -> dict[str, Any]:
        if asked:
            await trio.sleep_forever()
        asked.append(None)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    with pytest.raises(BaseException, match=r"nursery|a bug"):
        trio.run(node.client.app, scope_of(CHAT), receive, send)
    assert b"the node failed" in sent[-1]
    assert b"a bug" not in b"".join(sent)


def test_what_can_be_asked_is_described() -> None:
    node = speaking_node("x")
    told = node.client.get("/openapi.json").json()
    assert told["openapi"].startswith("3.")
    chat = told["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "messages" in chat
    assert "not supported" in chat["logprobs"]["description"]
    for path, ways in told["paths"].items():
        for way in ways:
            if path != "/v1/events":  # which never ends
                assert node.client.request(way, path).status_code not in (404, 405), (way, path)


def test_a_client_that_goes_away_frees_all_of_its_answers() -> None:
    node = speaking_node(*["x"] * 50)
    sent: list[dict[str, Any]] = []
    body = json.dumps({"messages": MESSAGES, "n": 3, "stream": True}).encode()

    async def receive() -> dict[str, Any]:
        if not sent:
            sent.append({})
            return {"type": "http.request", "body": body, "more_body": False}
        while len(sent) < 8:
            await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        await trio.lowlevel.checkpoint()

    trio.run(node.client.app, scope_of(CHAT), receive, send)
    assert node.dispatcher.open == 0
    assert not node.service._running


def test_the_official_client_reads_it_all() -> None:
    import openai

    node: SpeakingNode = speaking_node(*CALLING, speech=HERMES)

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {k: v for k, v in request.headers.items() if k != "host"}
        reply = node.client.request(request.method, request.url.path, content=request.read(), headers=headers)
        return httpx.Response(reply.status_code, content=reply.content, headers=dict(reply.headers))

    client = openai.OpenAI(
        base_url="http://localhost/v1",
        api_key="unused",
        max_retries=0,
        http_client=httpx.Client(transport=httpx.MockTransport(answer)),
    )
    whole = client.chat.completions.create(model="", messages=MESSAGES, tools=TOOLS)  # type: ignore[call-overload]
    assert whole.choices[0].message.tool_calls[0].function.name == "look"
    assert whole._request_id == whole.id
    with client.chat.completions.stream(model="", messages=MESSAGES, tools=TOOLS) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"at": 1}'
    with pytest.raises(openai.NotFoundError, match="serves"):
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)  # type: ignore[call-overload]
    assert client.completions.create(model="", prompt="a").choices[0].text
    assert client.models.list().data
