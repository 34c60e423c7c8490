"""The conversation and the chunks that write it, as plain data."""

from __future__ import annotations

import json

from parallax_tui.chat import Answered, Conversation, Piece, Refused, decode_chunk
from parallax_tui.chat.captions import caption
from parallax_tui.client.sse import SseParser
from parallax_tui.state.cells import text_of
from tests.fakes.swarms import hops


def roles(conversation: Conversation) -> list[str]:
    return [message["role"] for message in conversation.request()]


def test_roles_always_alternate_in_what_is_sent() -> None:
    conversation = Conversation()
    conversation.end(conversation.ask("one"), "failed", "no")
    answer = conversation.ask("two")
    answer.text = "half"
    conversation.end(answer, "stopped")
    conversation.ask("three")
    assert roles(conversation) == ["user", "assistant", "user"]
    assert conversation.request()[0]["content"] == "two"


def test_regenerate_replaces_the_last_answer_alone() -> None:
    conversation = Conversation()
    first = conversation.ask("one")
    first.text = "1"
    assert not conversation.can_regenerate
    conversation.end(first, "done")
    second = conversation.regenerate()
    assert second is conversation.running
    assert [message.text for message in conversation.messages] == ["one", ""]
    assert roles(conversation) == ["user"]


def test_clear_can_be_taken_back_once() -> None:
    conversation = Conversation()
    conversation.end(conversation.ask("one"), "done")
    conversation.clear()
    conversation.clear()
    assert conversation.can_restore
    conversation.restore()
    assert len(conversation.messages) == 2
    assert not conversation.can_restore


def test_prompts_outlive_a_clear_and_do_not_repeat() -> None:
    conversation = Conversation()
    for text in ("a", "a", "b"):
        conversation.end(conversation.ask(text), "done")
    conversation.clear()
    assert conversation.prompts == ["a", "b"]


def test_sse_events_are_put_together_from_their_lines() -> None:
    parser = SseParser()
    lines = [": comment", "data: one", "", "event: x", "data:two", "data: three", "", "", "id: 4", ""]
    assert [data for line in lines if (data := parser.feed(line)) is not None] == ["one", "two\nthree"]


def test_chunks_are_text_figures_or_refusals() -> None:
    def chunk(**fields: object) -> tuple[Piece | Answered | Refused, ...]:
        return decode_chunk(json.dumps(fields))

    assert chunk(choices=[{"delta": {"role": "assistant"}}]) == ()
    assert chunk(choices=[{"delta": {"content": "a\x1bb"}, "finish_reason": None}]) == (Piece("ab"),)
    assert chunk(choices=[{"delta": {"content": "x"}, "finish_reason": "stop"}]) == (Piece("x"), Answered("stop"))
    assert chunk(choices=[], usage={"completion_tokens": 7, "prompt_tokens": 3}) == (
        Answered(tokens=7, prompt_tokens=3),
    )
    assert chunk(error={"message": "gone"}) == (Refused("gone"),)
    assert chunk(error={}) == (Refused("the node gave no reason"),)
    assert all(isinstance(decode_chunk(bad)[0], Refused) for bad in ("", "[1]", "nonsense", '{"choices": 3}'))


def test_figures_come_in_two_parts_and_make_one_caption() -> None:
    conversation = Conversation()
    answer = conversation.ask("one")
    answer.text = "text"
    conversation.figures(answer, Answered("length", ttft_ms=420, tpot_ms=20, hops=hops()))
    conversation.figures(answer, Answered(tokens=128))
    conversation.end(answer, "done")
    said = " ".join(text_of(line) for line in caption(answer, 200))
    assert said == "cut at its length limit · TTFT 420 ms · 50.0 tok/s · 128 tokens · 3 hops, slowest studio 10.8 ms"
    assert all(len(text_of(line)) <= 40 for line in caption(answer, 40))
