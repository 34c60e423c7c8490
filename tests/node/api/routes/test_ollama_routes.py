"""Ollama's routes as their own client reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.dialects.ollama import CHAT, GENERATE, OllamaChat, OllamaGenerate
from node.api.http.owner import Owner
from node.api.routes import ollama_models
from node.errors import BadRequest, FetchFailed, HopLost, NoRoute
from tests.fakes.speaking import HERMES, SpeakingNode, speaking_node
from tests.node.api.routes.strict import strictly

MESSAGES = [{"role": "user", "content": "Hi"}]
NAME = "smollm2-135m-instruct"
CHAT_BODY = {"model": f"{NAME}:latest", "messages": MESSAGES}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}]
CALLING = (
    "<think>h",
    "m</think>I l",
    "ook.<tool_call>",
    '{"name": "look", "arg',
    'uments": {"at": ',
    "1}}</tool_call>",
)


def lines(node: SpeakingNode, path: str, body: dict[str, object]) -> list[dict[str, Any]]:
    reply = node.post(path, body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in reply.text.splitlines()]


def test_a_chat_is_lines_of_json_unless_it_is_asked_whole() -> None:
    node = speaking_node("Hello", " there")
    told = lines(node, "/api/chat", CHAT_BODY)
    assert "".join(each["message"]["content"] for each in told) == "Hello there"
    assert [each["done"] for each in told] == [False, False, True]
    assert (told[-1]["done_reason"], told[-1]["prompt_eval_count"], told[-1]["eval_count"]) == ("stop", 4, 3)
    whole = node.post("/api/chat", {**CHAT_BODY, "stream": False}).json()
    assert (whole["message"]["content"], whole["done"]) == ("Hello there", True)


def test_options_are_its_own_names_for_the_same() -> None:
    node = speaking_node("a", "b", "c")
    options = {"temperature": 0.5, "num_predict": 2, "seed": 3, "top_k": 4, "num_ctx": 8192, "stop": ["x"]}
    told = node.post("/api/chat", {**CHAT_BODY, "options": options, "stream": False, "keep_alive": "5m"}).json()
    assert (told["message"]["content"], told["done_reason"]) == ("ab", "length")
    (generation,) = node.dispatcher.generations
    assert (generation.sampling.temperature, generation.sampling.seed, generation.sampling.top_k) == (0.5, 3, 4)


def test_thoughts_and_calls_are_apart() -> None:
    node = speaking_node(*CALLING, speech=HERMES)
    body = {**CHAT_BODY, "tools": TOOLS, "think": True}
    whole = node.post("/api/chat", {**body, "stream": False}).json()["message"]
    assert (whole["thinking"], whole["content"]) == ("hm", "I look.")
    assert whole["tool_calls"] == [{"function": {"name": "look", "arguments": {"at": 1}}}]
    told = [each["message"] for each in lines(node, "/api/chat", body)]
    assert "".join(each.get("thinking", "") for each in told) == "hm"
    assert [each["tool_calls"] for each in told if "tool_calls" in each] == [whole["tool_calls"]]
    said = [
        *MESSAGES,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": whole["tool_calls"]},
        {"role": "tool", "content": "seen", "tool_name": "look"},
    ]
    assert node.post("/api/chat", {**body, "messages": said}).status_code == 200
    (_, assistant, result) = node.model.prompts[-1]["messages"]
    assert assistant["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 1}}
    assert (result["role"], result["name"], result["content"]) == ("tool", "look", "seen")


def test_text_is_generated_through_the_template_or_raw() -> None:
    node = speaking_node("Hello")
    body = {"model": NAME, "prompt": "Hi", "system": "Be brief."}
    assert lines(node, "/api/generate", body)[0]["response"] == "Hello"
    assert node.model.prompts[-1]["messages"] == [{"role": "system", "content": "Be brief."}, *MESSAGES]
    count = len(node.model.prompts)
    assert node.post("/api/generate", {**body, "raw": True, "stream": False}).json()["response"] == "Hello"
    assert len(node.model.prompts) == count, "no template"


def test_a_request_for_nothing_wants_the_model_loaded() -> None:
    node = speaking_node("x")
    for path in ("/api/chat", "/api/generate"):
        told = node.post(path, {"model": NAME}).json()
        assert (told["done"], told["done_reason"]) == (True, "load")
        assert node.post(path, {"model": "other"}).status_code == 404
    assert node.dispatcher.generations == []


def test_what_is_served_is_told_in_its_form() -> None:
    ollama = pytest.importorskip("ollama")
    node = speaking_node("Hello", speech=HERMES)
    tags = ollama.ListResponse.model_validate(node.client.get("/api/tags").json())
    assert tags.models[0].model == f"{NAME}:latest"
    shown = ollama.ShowResponse.model_validate(node.post("/api/show", {"model": NAME}).json())
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo["parallax.context_length"] == 1000
    strictly(ollama.ChatResponse, node.post("/api/chat", {**CHAT_BODY, "stream": False}).json())
    for told in lines(node, "/api/chat", CHAT_BODY):
        strictly(ollama.ChatResponse, told)
    for told in lines(node, "/api/generate", {"model": NAME, "prompt": "x"}):
        strictly(ollama.GenerateResponse, told)
    assert ollama.ProcessResponse.model_validate(node.client.get("/api/ps").json()).models[0].name
    assert node.client.get("/api/version").json()["version"]


BAD_CHAT: list[tuple[dict[str, object], str]] = [
    ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": 5}]}, "content"),
    ({"messages": [{"role": "user", "content": "x", "images": ["abc"]}]}, "images"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}, "arguments"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"format": "json"}, "format"),
    ({"format": {"type": "object"}}, "format"),
    ({"options": {"repeat_penalty": 1.1}}, "options.repeat_penalty"),
    ({"options": {"wibble": 1}}, "options.wibble"),
    ({"options": {"num_predict": 0}}, "options.num_predict"),
    ({"options": {"temperature": "hot"}}, "options"),
    ({"options": 5}, "options"),
    ({"think": "hard"}, "think"),
    ({"think": 5}, "think"),
    ({"stream": "yes"}, "stream"),
    ({"wibble": 1}, "wibble"),
]


@pytest.mark.parametrize(("fields", "named"), BAD_CHAT, ids=[str(number) for number in range(len(BAD_CHAT))])
def test_what_cannot_be_is_refused_by_name_in_its_own_form(fields: dict[str, object], named: str) -> None:
    reply = speaking_node("x").post("/api/chat", {**CHAT_BODY, **fields})
    assert reply.status_code == 400
    assert set(reply.json()) == {"error"}
    assert named in reply.json()["error"]


@pytest.mark.parametrize("name", ["suffix", "template", "context", "images", "format"])
def test_what_cannot_be_generated_is_refused_by_name(name: str) -> None:
    value = [1] if name in ("context", "images") else "x"
    reply = speaking_node("x").post("/api/generate", {"model": NAME, "prompt": "x", name: value})
    assert (reply.status_code, name in reply.json()["error"]) == (400, True)


def test_errors_are_sentences_with_a_status() -> None:
    node = speaking_node("x")
    assert node.post("/api/chat", {**CHAT_BODY, "model": "other"}).status_code == 404
    assert node.post("/api/wibble", {}).json().keys() == {"error"}
    assert "no embeddings" in node.post("/api/embed", {"model": NAME, "input": "x"}).json()["error"]
    busy = speaking_node("x", fails=NoRoute("nobody")).post("/api/chat", CHAT_BODY)
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "2")
    lost = speaking_node("a", "b", fails=HopLost("attic", "0-9", "gone"), fails_after=1)
    assert "attic" in lines(lost, "/api/chat", CHAT_BODY)[-1]["error"]


def test_a_model_is_fetched_with_its_progress_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def fetch(choice: str, models: Path, progress: Any) -> None:
        asked.append(choice)
        progress("fetch", 5, 10, "model.safetensors")
        if choice.startswith("broken"):
            raise FetchFailed(choice, "no network")

    monkeypatch.setattr(ollama_models, "fetch", fetch)
    node = speaking_node("x")
    told = lines(node, "/api/pull", {"model": "hf.co/org/name:latest"})
    assert told[0] == {"status": "fetch model.safetensors", "digest": "model.safetensors", "total": 10, "completed": 5}
    assert told[-1] == {"status": "success"}
    assert lines(node, "/api/pull", {"name": "org/name", "stream": False}) == [{"status": "success"}]
    assert "no network" in lines(node, "/api/pull", {"model": "broken/name"})[-1]["error"]
    assert asked == ["org/name", "org/name", "broken/name"]


def test_nobody_has_files_of_this_machine_read_or_models_fetched_from_a_page() -> None:
    node = speaking_node("x", owner=Owner("secret", "file"))
    for name in ("/etc/passwd", "../x/y", "name", "a/b/c", "./model", "C:\\x", "", "a/.."):
        assert node.post("/api/pull", {"model": name}).status_code == 400
    page = node.post("/api/pull", {"model": "org/name"}, origin="http://localhost:3000")
    assert page.status_code == 403
    exposed = speaking_node("x", owner=Owner("secret", "file", exposed=True))
    assert exposed.post("/api/pull", {"model": "org/name"}).status_code == 403


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "function", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(sorted({*CHAT.names, *GENERATE.names})), anything),
    st.sampled_from([OllamaChat(), OllamaGenerate()]),
)
def test_no_json_does_anything_but_bad_request(fields: dict[str, object], dialect: OllamaChat | OllamaGenerate) -> None:
    try:
        dialect.parse(json.dumps(fields).encode())
    except BadRequest:
        return
