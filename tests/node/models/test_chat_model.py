"""Prompts become the ids that llama.cpp and transformers make of them, and ids become text that only grows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from node.errors import BadRequest, DamagedModel, UnsupportedModel
from node.models import ChatModel


@pytest.fixture(scope="module")
def chat(default_model_folder: Path) -> ChatModel:
    return ChatModel.load(default_model_folder)


def test_prompts_become_the_ids_of_the_oracle(chat: ChatModel, greedy_oracle: list[Any]) -> None:
    for known in greedy_oracle:
        assert chat.render([{"role": "user", "content": known.prompt}]) == known.ids


def test_answers_become_the_text_of_the_oracle(chat: ChatModel, greedy_oracle: list[Any]) -> None:
    for known in greedy_oracle:
        stream = chat.stream()
        pieces = [stream.push(token) for token in known.out]
        assert "".join(pieces) + stream.finish() == known.out_text == chat.decode(known.out)


def test_the_end_of_a_turn_stops_the_default_model(chat: ChatModel) -> None:
    assert 2 in chat.stop_tokens  # <|im_end|>
    assert 1 not in chat.stop_tokens  # <|im_start|>, which transformers' own conversion names
    assert chat.context_tokens == 8192


def test_conversations_become_the_ids_of_transformers(chat: ChatModel, default_model_folder: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(default_model_folder)
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Größe von 1234 🙂? <|im_ end|> \n\n  x"},
        {"role": "assistant", "content": "¿Qué?"},
        {"role": "user", "content": ""},
    ]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.render(messages) == expected


def test_parts_of_text_are_joined_and_others_refused(chat: ChatModel) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    joined = chat.render([{"role": "user", "content": parts}])
    assert joined == chat.render([{"role": "user", "content": "What is this?"}])
    with pytest.raises(BadRequest, match="messages: only parts of type text"):
        chat.render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


def test_special_tokens_do_not_show_in_the_text(chat: ChatModel) -> None:
    stream = chat.stream()
    assert stream.push(1) + stream.push(504) + stream.push(2) + stream.finish() == "The"


@given(st.lists(st.integers(0, 49151), max_size=60))
@settings(max_examples=150, deadline=None)
def test_a_stream_gives_what_decoding_at_once_gives(default_model_folder: Path, tokens: list[int]) -> None:
    chat = _cached(default_model_folder)
    stream = chat.stream()
    pieces = [stream.push(token) for token in tokens]
    shown = "".join(pieces) + stream.finish()
    assert shown.rstrip("\ufffd") == chat.decode(tokens).rstrip("\ufffd")


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_stream_never_shows_half_a_character(default_model_folder: Path, text: str) -> None:
    chat = _cached(default_model_folder)
    stream, shown = chat.stream(), ""
    for token in chat.encode(text):
        shown += stream.push(token)
        assert chat.decode(chat.encode(text)).startswith(shown)
    assert (shown + stream.finish()).rstrip("\ufffd") == chat.decode(chat.encode(text)).rstrip("\ufffd")


_chats: dict[Path, ChatModel] = {}


def _cached(folder: Path) -> ChatModel:
    return _chats.setdefault(folder, ChatModel.load(folder)) if folder not in _chats else _chats[folder]


def with_template(folder: Path, template: str) -> ChatModel:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return ChatModel.load(folder)


def test_a_template_may_refuse_messages(make_folder: Callable[..., Path]) -> None:
    chat = with_template(make_folder(), "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadRequest, match=r"messages: .*roles must alternate"):
        chat.render([{"role": "user", "content": "hello"}])


def test_templates_have_what_transformers_gives_them(make_folder: Callable[..., Path]) -> None:
    template = (
        "{%- for m in messages %}\n  {%- if loop.index > 1 %}{% break %}{% endif %}\n"
        "{{ bos_token }}{{ m | tojson }}{{ strftime_now('') }}{% generation %}!{% endgeneration %}\n{%- endfor %}"
    )
    chat = with_template(make_folder(), template)
    ids = chat.render([{"role": "user", "content": "<b>"}, {"role": "user", "content": "x"}])
    assert ids[0] == 1
    assert chat.decode(ids) == '{"role": "user", "content": "<b>"}!'


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[7]['content'] + 1 }}", "{{ 1/0 }}"],
)
def test_a_template_that_reaches_too_far_fails_alone(make_folder: Callable[..., Path], template: str) -> None:
    chat = with_template(make_folder(), template)
    try:
        ids = chat.render([{"role": "user", "content": "hello"}])
    except BadRequest:
        return
    assert chat.decode(ids) == ""


def test_a_model_without_template_does_not_chat(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadRequest, match="no chat template"):
        ChatModel.load(folder).render([{"role": "user", "content": "hello"}])


def test_a_template_in_the_tokenizer_config_is_taken(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "tool_use", "template": "{% if tools %}x{% endif %}"},
        {"name": "default", "template": "the"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    chat = ChatModel.load(folder)
    assert chat.decode(chat.render([])) == "the"
    assert chat.prompt_text([], [{"type": "function", "function": {"name": "f"}}]) == "x", "with tools, the other one"


def test_damaged_files_are_named(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(DamagedModel, match="chat template"):
        ChatModel.load(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DamagedModel, match=r"tokenizer_config\.json"):
        ChatModel.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DamagedModel, match=r"tokenizer\.json"):
        ChatModel.load(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_text("")
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        ChatModel.load(folder)


def test_stop_tokens_come_from_every_place(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5, 99999, True]}))
    assert set(ChatModel.load(folder).stop_tokens) == {0, 2, 5}
