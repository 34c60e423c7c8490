"""The way from a model's text to the screen: same result however it arrives, nothing but text gets through."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.style import Style
from textual.strip import Strip

from parallax_tui.chat.blocks import blocks
from parallax_tui.chat.cleaning import clean
from parallax_tui.chat.conversation import Message
from parallax_tui.widgets.entry import OPEN_LIMIT, Entry
from parallax_tui.widgets.markdown import MarkdownPainter, Palette

WIDTH = 40
PALETTE = Palette(
    base=Style.parse("white on black"),
    muted=Style.parse("grey50"),
    strong=Style.parse("bold"),
    accent=Style.parse("bold blue"),
    question=Style.parse("white on grey11"),
    code_style="github-dark",
    code_ground="#111111",
)
PAINTER = MarkdownPainter(WIDTH, PALETTE)
MARKDOWN = st.lists(
    st.sampled_from(
        [
            *(
                "# ",
                "- ",
                "1. ",
                "> ",
                "```",
                "```py\n",
                "~~~",
                "\n",
                "\n\n",
                "    ",
                "|",
                "|--|",
                "| a | b |\n",
                "**",
                "*",
                "_",
            ),
            *(
                "`",
                "[x](",
                ")",
                "![i](u)",
                "<b>",
                "</b>",
                "<kbd>",
                "</kbd>",
                "&#13;",
                "&#x1b;",
                "&#8238;",
                "~~",
                "---\n",
                "===\n",
            ),
            *(
                "word ",
                "日本語 ",
                "\t",
                "\\",
                "\x1b[31m",
                "http://a.b ",
                "[bold]",
                ":smile:",
                "é",
                "👩‍👩‍👧",
                "x" * 60,
                "0",
            ),
        ]
    ),
    max_size=40,
).map("".join)


def said(text: str, status: str = "done") -> list[str]:
    entry = Entry(Message("assistant", text, status))  # type: ignore[arg-type]
    entry.update(PAINTER, lambda line: Strip([]))
    return [strip.text.rstrip() for strip in entry.strips]


@settings(max_examples=150, deadline=None)
@given(MARKDOWN)
@example("| a |\n|---|\n| b |\n\ntext")
@example("1. a\n\n   more\n\n2. b\n")
def test_any_text_is_shown_in_its_width_and_without_control_characters(text: str) -> None:
    for strip in (*PAINTER.markdown(clean(text)), *PAINTER.plain(clean(text)), *PAINTER.question(clean(text))):
        assert strip.cell_length == WIDTH
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e" for c in strip.text)
        assert all(style is None or not style.link for _, style, _ in strip)


@settings(max_examples=100, deadline=None)
@given(MARKDOWN, st.integers(1, 9))
def test_a_text_ends_the_same_however_it_arrived(text: str, step: int) -> None:
    text = clean(text)
    message = Message("assistant", "", "running")
    entry = Entry(message)
    for start in range(0, len(text), step * 4):
        message.text = text[: start + step * 4]
        entry.update(PAINTER, lambda line: Strip([]))
    message.text, message.status = text, "done"
    entry.update(PAINTER, lambda line: Strip([]))
    assert [strip.text.rstrip() for strip in entry.strips] == said(text)


@given(MARKDOWN)
def test_blocks_are_the_text(text: str) -> None:
    settled, rest = blocks(text)
    assert "".join(settled) + rest == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("one\n\ntwo", 1),
        ("one\n\n", 0),
        ("```\na\n\nb\n", 0),
        ("```\na\n\nb\n```\n\nc", 1),
        ("~~~~\n~~~\n\nx\n~~~~\n\ny", 1),
        ("- a\n\n    more\n\n- b", 1),
        ("``` not a fence ``` x\n\ny", 1),
    ],
)
def test_only_what_is_final_is_settled(text: str, count: int) -> None:
    assert len(blocks(text)[0]) == count


def test_a_model_is_shown_as_it_wrote() -> None:
    assert said("roses are red\nviolets are blue")[:2] == ["roses are red", "violets are blue"]
    assert said("<b>tag</b> [bold]x[/bold] :smile:")[0] == "<b>tag</b> [bold]x[/bold] :smile:"
    assert said("[text](http://a.b/c)")[0] == "text (http://a.b/c)"
    assert said("![cat](http://a.b/c.png)")[0] == "cat (http://a.b/c.png)"


def test_a_huge_open_block_is_plain_until_it_is_done() -> None:
    table = "| a | b |\n|---|---|\n" + "| x | y |\n" * (OPEN_LIMIT // 10)
    assert "|---|---|" in said(table, "running")
    assert "|---|---|" not in said(table)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x1b[2Jb", "a[2Jb"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\x85b\u2028c", "a\nb\nc"),
        ("\u202eabc\u2066", "abc"),
        ("\ud800x", "\ufffdx"),
        ("tab\tnew\n", "tab\tnew\n"),
        ("stu\u200bdio\u2060\ufeff\U000e0041\ufff9x\xad", "studiox"),
        ("👩‍👩‍👧 é", "👩‍👩‍👧 é"),
    ],
)
def test_cleaning(raw: str, shown: str) -> None:
    assert clean(raw) == shown
