"""Ollama's chat and generate: bodies, checked at the door."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from node.api.asking import NO_LIMIT, Ask, Chat, Message, Plain, Prompt
from node.api.dialects.base import Asked
from node.api.dialects.fields import (
    OFF,
    UNSUPPORTED,
    Fields,
    absent,
    begins,
    decoded,
    is_raw,
    object_of,
    seed_of,
    shown,
    stops_of,
    text_of,
    whole_within,
    within,
)
from node.api.dialects.ollama_form import OllamaForm, ollama_error
from node.api.dialects.openai_messages import MOST_MESSAGES, refuse_too_many
from node.api.dialects.thinking import by_effort, by_switch, switched
from node.api.dialects.tools import call_of, name_of, tools_of
from node.errors import BadRequest

LATEST = ":latest"


class _Options(Struct, frozen=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None


OPTIONS = Fields(
    _Options,
    harmless=(
        # of how a model is loaded, which the swarm decides
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "low_vram"),
        *("f16_kv", "vocab_only", "num_keep", "logits_all", "embedding_only", "num_gqa"),
        # parts of what is off, or else refused by its own name
        *("repeat_last_n", "mirostat_tau", "mirostat_eta", "penalize_newline"),
    ),
    neutral={
        "min_p": ((0,), UNSUPPORTED),
        "typical_p": ((1,), UNSUPPORTED),
        "tfs_z": ((1,), UNSUPPORTED),
        "repeat_penalty": ((1,), UNSUPPORTED),
        "presence_penalty": ((0,), UNSUPPORTED),
        "frequency_penalty": ((0,), UNSUPPORTED),
        "mirostat": ((0,), UNSUPPORTED),
    },
    also_known={"max_tokens": "num_predict"},
)

_COMMON: dict[str, tuple[tuple[object, ...], str]] = {
    "format": (OFF, UNSUPPORTED),
    "images": (OFF, UNSUPPORTED),
    "logprobs": ((False,), "logprobs are not supported"),
    "top_logprobs": ((0,), "logprobs are not supported"),
}


class _Chat(Struct, frozen=True):
    messages: Raw = Raw(b"null")
    model: str | None = None
    tools: Raw = Raw(b"null")
    stream: bool | None = None
    options: Raw = Raw(b"null")
    think: Raw = Raw(b"null")


class _Generate(Struct, frozen=True):
    prompt: Raw = Raw(b"null")
    model: str | None = None
    system: Raw = Raw(b"null")
    raw: bool | None = None
    stream: bool | None = None
    options: Raw = Raw(b"null")
    think: Raw = Raw(b"null")


CHAT = Fields(_Chat, harmless=("keep_alive", "truncate", "shift"), neutral=_COMMON)
GENERATE = Fields(
    _Generate,
    harmless=("keep_alive", "truncate", "shift"),
    neutral={
        **_COMMON,
        "suffix": (("",), "the model cannot fill in before a suffix; leave it out"),
        "template": (("",), UNSUPPORTED),
        "context": (OFF, "is not supported; send the conversation to /api/chat"),
    },
)


class OllamaChat:
    """`POST /api/chat`."""

    error = staticmethod(ollama_error)

    def parse(self, body: bytes) -> Asked:
        """Check a body. Raises BadRequest with the parameter's name and what is wrong with it."""
        refuse_too_many(body)
        CHAT.check(body)
        asked: _Chat = decoded(body, _Chat)
        options, thinks = _thinking(asked.think)
        chat = Chat(_messages(asked.messages), tools_of(asked.tools), options, thinks)
        return Asked(_ask(chat, asked.model, asked.options), OllamaForm(chat=True), asked.stream is not False)


class OllamaGenerate:
    """`POST /api/generate`."""

    error = staticmethod(ollama_error)

    def parse(self, body: bytes) -> Asked:
        """The same."""
        GENERATE.check(body)
        asked: _Generate = decoded(body, _Generate)
        text = "" if is_raw(asked.prompt, b"null") else text_of(asked.prompt, "prompt")
        system = "" if is_raw(asked.system, b"null") else text_of(asked.system, "system")
        options, thinks = _thinking(asked.think)
        prompt: Prompt
        if asked.raw:
            prompt = Plain(text)
        else:
            said: list[Message] = [{"role": "system", "content": system}] if system else []
            prompt = Chat([*said, {"role": "user", "content": text}], (), options, thinks, where="prompt")
        return Asked(_ask(prompt, asked.model, asked.options), OllamaForm(chat=False), asked.stream is not False)


def only_loads(body: bytes) -> str | None:
    """The model's name where nothing is asked of it: this dialect's way to have it loaded. None: something is."""
    try:
        asked: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None
    if asked.get("messages") or asked.get("prompt") or not isinstance(asked.get("model"), str):
        return None
    return model_name(asked["model"])


def model_name(name: str | None) -> str:
    """Without the tag that clients add."""
    return (name or "").removesuffix(LATEST)


def _ask(prompt: Prompt, model: str | None, raw: Raw) -> Ask:
    options = _Options()
    if not absent(raw):
        OPTIONS.check(raw, "options.")
        options = decoded(raw, _Options, "options")
    limit = options.num_predict
    if limit is not None:
        limit = NO_LIMIT if limit in (-1, -2) else whole_within("options.num_predict", limit, 1, NO_LIMIT)
    return Ask(
        prompts=(prompt,),
        model=model_name(model),
        max_tokens=limit,
        stop=stops_of(options.stop, "options.stop"),
        temperature=within("options.temperature", options.temperature, 0.0, 2.0),
        top_p=within("options.top_p", options.top_p, 0.0, 1.0, above=True),
        top_k=0 if options.top_k == -1 else whole_within("options.top_k", options.top_k, 0, 1_000_000),
        seed=seed_of(options.seed, "options.seed"),
        id_prefix="ollama-",
    )


def _thinking(raw: Raw) -> tuple[dict[str, object], bool | None]:
    if begins(raw, b'"'):
        return by_effort(text_of(raw, "think"), "think")
    on = by_switch(raw, "think")
    return ({}, None) if on is None else (switched(on), on)


class _Message(Struct, frozen=True):
    role: Raw = Raw(b'""')
    content: Raw = Raw(b'""')
    thinking: Raw = Raw(b"null")
    images: Raw = Raw(b"null")
    tool_calls: Raw = Raw(b"null")
    tool_name: Raw = Raw(b"null")
    tool_call_id: Raw = Raw(b"null")
    name: Raw = Raw(b"null")


class _Call(Struct, frozen=True):
    function: Raw = Raw(b"null")
    id: Raw = Raw(b'""')


class _Called(Struct, frozen=True):
    name: Raw = Raw(b'""')
    arguments: Raw = Raw(b"{}")


def _messages(raw: Raw) -> list[Message]:
    each_raw: list[Raw] = decoded(raw, list[Raw], "messages") if begins(raw, b"[") else []
    if not each_raw:
        raise BadRequest("messages", "must be a list with at least one message")
    if len(each_raw) > MOST_MESSAGES:
        raise BadRequest("messages", f"more than {MOST_MESSAGES} are not taken")
    return [_message(each, f"messages[{index}]") for index, each in enumerate(each_raw)]


def _message(raw: Raw, where: str) -> Message:
    said: _Message = decoded(raw, _Message, where)
    role = text_of(said.role, f"{where}.role")
    if role not in ("system", "user", "assistant", "tool"):
        raise BadRequest(f"{where}.role", f"must be system, user, assistant or tool, not {shown(role)}")
    if not absent(said.images):
        raise BadRequest(f"{where}.images", UNSUPPORTED)
    content = "" if is_raw(said.content, b"null") else text_of(said.content, f"{where}.content")
    message: dict[str, object] = {"role": role, "content": content}
    if not absent(said.thinking):
        message["reasoning_content"] = text_of(said.thinking, f"{where}.thinking")
    if not absent(said.tool_calls):
        calls: list[_Call] = decoded(said.tool_calls, list[_Call], f"{where}.tool_calls")
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    if role == "tool":
        message["tool_call_id"] = (
            text_of(said.tool_call_id, f"{where}.tool_call_id") if begins(said.tool_call_id, b'"') else ""
        )
        for name in (said.tool_name, said.name):
            if not absent(name):
                message["name"] = text_of(name, f"{where}.tool_name")
    return message


def _call(call: _Call, where: str) -> dict[str, object]:
    called: _Called = decoded(call.function, _Called, f"{where}.function")
    name = name_of(called.name, f"{where}.function.name")
    return call_of(text_of(call.id, f"{where}.id"), name, object_of(called.arguments, f"{where}.function.arguments"))
