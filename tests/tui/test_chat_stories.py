"""A person chats."""

from __future__ import annotations

import asyncio

from textual import events

from tests.fakes.node_api import Answer, FakeNode
from tests.fakes.swarms import hops, one_node, three_nodes
from tests.fakes.terminal import at_node


async def test_an_answer_streams_in_and_tells_its_figures(node: FakeNode) -> None:
    go_on = asyncio.Event()
    node.state = three_nodes(requests=())
    node.answers = [Answer(["The capital ", go_on, "is **Paris**."], hops=hops())]
    async with at_node(node) as terminal:
        await terminal.type("Capital of France?")
        await terminal.shows("▌ Capital of France?", "The capital")
        assert "Paris" not in terminal.text
        assert "esc stop" in terminal.text
        go_on.set()
        await terminal.shows(
            "The capital is Paris.", "TTFT 420 ms · 23.5 tok/s · 2 tokens · 3 hops, slowest studio 10.8 ms"
        )
        assert "esc stop" not in terminal.text
    assert node.asked[0] == {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Capital of France?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_escape_stops_the_answer_and_hangs_up(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["One, two, ", asyncio.Event()])]
    async with at_node(node) as terminal:
        await terminal.type("Count")
        await terminal.shows("One, two,")
        await terminal.press("escape")
        await terminal.shows("■ stopped")
        await asyncio.wait_for(node.hung_up.wait(), 5)
        node.hung_up.clear()
        node.answers = [Answer(["three"])]
        await terminal.type("Go on")
        await terminal.shows("three")
    assert [message["content"] for message in node.asked[1]["messages"]] == ["Count", "One, two, ", "Go on"]  # type: ignore[attr-defined]


async def test_an_answer_can_be_written_again(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["first try"]), Answer(["second try"])]
    async with at_node(node) as terminal:
        await terminal.type("Say something")
        await terminal.shows("first try")
        await terminal.until(lambda: "^r again" in terminal.text)
        await terminal.press("ctrl+r")
        await terminal.shows("second try")
        await terminal.hides("first try")
    assert node.asked[0] == node.asked[1]


async def test_an_error_in_mid_stream_is_shown_in_place_and_does_not_end_the_chat(node: FakeNode) -> None:
    lost = {
        "error": {"message": "node studio (layers 10–19) was lost during the request: silent", "type": "server_error"}
    }
    node.state = one_node()
    node.answers = [Answer(["So far ", lost]), Answer(["Again whole."])]
    async with at_node(node) as terminal:
        await terminal.type("Hello")
        await terminal.shows("So far", "✕ node studio (layers 10–19) was lost")
        await terminal.press("ctrl+r")
        await terminal.shows("Again whole.")
        await terminal.hides("was lost")


async def test_refusals_are_shown_whatever_their_form(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [
        Answer(refuse=(503, '{"error": {"message": "layers 10–19 are served by nobody"}}'.encode())),
        Answer(refuse=(500, b"Internal Server Error")),
        Answer(refuse=(502, b"")),
        Answer(["half "], finish=False),
        Answer([{"choices": 7}]),
    ]
    async with at_node(node, size=(80, 40)) as terminal:
        for said in (
            "layers 10–19 are served by nobody",
            "Internal Server Error",
            "HTTP 502",
            "went away",
            "no chat chunk",
        ):
            await terminal.type("Hello")
            await terminal.shows(said)
            await terminal.until(lambda: "enter send" in terminal.text)


async def test_a_cleared_chat_comes_back(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["Here."])]
    async with at_node(node) as terminal:
        await terminal.type("Hello")
        await terminal.shows("Here.", "^r again")
        await terminal.press("ctrl+l")
        await terminal.hides("Here.")
        await terminal.shows("ask anything")
        await terminal.press("ctrl+l")
        await terminal.shows("Here.")


async def test_earlier_questions_come_back_and_the_draft_is_kept(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["ok"])]
    async with at_node(node) as terminal:
        for question in ("first question", "second question"):
            await terminal.type(question)
            await terminal.until(lambda: "enter send" in terminal.text)
        await terminal.press(*"draft", "up", "up")
        prompt = terminal.app.screen.query_one("Prompt")
        assert prompt.text == "first question"
        await terminal.press("down")
        assert prompt.text == "second question"
        await terminal.press("down")
        assert prompt.text == "draft"


async def test_ctrl_j_makes_a_new_line_and_an_empty_question_is_not_sent(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["ok"])]
    async with at_node(node) as terminal:
        await terminal.press("enter", "space", "enter")
        await terminal.press("a", "ctrl+j", "b", "enter")
        await terminal.shows("▌ a", "▌ b", "ok")
    assert [message["content"] for message in node.asked[0]["messages"]] == ["a\nb"]  # type: ignore[attr-defined]


async def test_no_letter_is_lost_however_fast_the_keys_come(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["ok", asyncio.Event()])]
    async with at_node(node) as terminal:
        for character in "What is the capital of France?\rnext\r":
            key = "enter" if character == "\r" else events.Key(character, character).key
            terminal.app.post_message(events.Key(key, character))
        await terminal.shows("ok", "What is the capital of France?", "next")
        assert terminal.app.screen.query_one("Prompt").text == "next"


async def test_a_second_question_waits_until_the_answer_has_ended(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["...", asyncio.Event()])]
    async with at_node(node) as terminal:
        await terminal.type("Hello")
        await terminal.shows("...")
        await terminal.type("And")
        await terminal.shows("an answer is being written")
        assert terminal.app.screen.query_one("Prompt").text == "And"
    assert len(node.asked) == 1


async def test_ctrl_c_stops_first_and_quits_second(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["...", asyncio.Event()])]
    async with at_node(node) as terminal:
        await terminal.type("Hello")
        await terminal.shows("...")
        await terminal.press("ctrl+c")
        await terminal.shows("■ stopped", "^c again quits")
        await terminal.press("ctrl+c")
        await terminal.until(lambda: terminal.app.return_code == 0)


async def test_control_characters_of_a_model_never_reach_the_terminal(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["\x1b[2J\x1b]52;c;aGk=\x07red\x9b31m ", "[bold]plain[/bold] \u202eturned &#13;&#27;end"])]
    async with at_node(node) as terminal:
        await terminal.type("Attack")
        await terminal.shows("red", "[bold]plain[/bold]", "turned", "end")
        painted = terminal.text.replace("\n", "")
        assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in painted)
        assert "\u202e" not in painted


async def test_the_answer_is_copied_as_it_was_written(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["**Paris**, of course"])]
    async with at_node(node) as terminal:
        await terminal.type("Capital?")
        await terminal.shows("Paris, of course")
        await terminal.press("ctrl+y")
        assert terminal.app.clipboard == "**Paris**, of course"


async def test_a_long_answer_is_followed_unless_the_person_scrolls(node: FakeNode) -> None:
    go_on = asyncio.Event()
    node.state = one_node()
    node.answers = [Answer([*(f"line {n}\n\n" for n in range(40)), go_on, *(f"line {n}\n\n" for n in range(40, 60))])]
    async with at_node(node) as terminal:
        await terminal.type("Count")
        await terminal.shows("line 39")
        await terminal.press("pageup", "pageup")
        await terminal.hides("line 39")
        before = terminal.text
        go_on.set()
        await terminal.until(lambda: "enter send" in terminal.text)
        assert [line[:70].strip() for line in terminal.text.splitlines()[:10]] == [
            line[:70].strip() for line in before.splitlines()[:10]
        ]
        await terminal.press("ctrl+end")
        await terminal.shows("line 59")


async def test_everything_wraps_anew_when_the_window_changes(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["word " * 40])]
    async with at_node(node, size=(120, 40)) as terminal:
        await terminal.type("Say word")
        await terminal.shows("word word", "TTFT")
        await terminal.pilot.resize_terminal(60, 15)
        await terminal.until(lambda: max(map(len, terminal.text.splitlines())) <= 60)
        await terminal.shows("TTFT", "enter send")
        await terminal.until(lambda: terminal.text.count("word") == 41, "all words")  # with the question
        await terminal.pilot.resize_terminal(120, 40)
        await terminal.shows("Say word")
        await terminal.until(lambda: any(line.count("word") > 15 for line in terminal.text.splitlines()))
