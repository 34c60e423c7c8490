"""Markdown to strips, through Rich. The text is a model's: it may be any text, and must do nothing but be shown.

So: no hyperlinks (a link shows its address), no HTML (it is shown as written), no pictures, and what comes out of the
parser is cleaned once more, since entities such as `&#13;` become characters there.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markdown import CodeBlock, Heading, HorizontalRule, Markdown, MarkdownElement
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

from parallax_tui.chat.cleaning import clean

_parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


@dataclass(frozen=True, slots=True)
class Palette:
    """Styles of one theme for text of the chat. Equal palettes paint equally."""

    base: Style
    muted: Style
    strong: Style
    accent: Style
    question: Style
    """A question's text and ground."""
    code_style: str
    """A Pygments style."""
    code_ground: str
    """Ground of code, as `#rrggbb`."""


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class _Rule(HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style=console.get_style("markdown.hr"), characters="─")


class _Code(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ground = console.get_style("markdown.code_block").bgcolor
        yield Syntax(
            str(self.text).rstrip("\n"),
            self.lexer_name,
            theme=self.theme,
            word_wrap=True,
            padding=(0, 1),
            background_color=ground.name if ground is not None else None,
        )


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "hr": _Rule,
    }

    def __init__(self, markup: str, code_style: str) -> None:
        super().__init__("", code_theme=code_style, hyperlinks=False)
        self.markup = markup
        self.parsed = list(_plain_tokens(_parser.parse(markup)))


def _plain_tokens(tokens: Iterable[Token]) -> Iterator[Token]:
    """Line ends as the model wrote them, and pictures as their description and address."""
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        elif token.type == "image":
            token.type, token.tag = "text", ""
            token.content = f"{token.content} ({token.attrs.get('src', '')})"
            token.children = None
        elif token.children:
            token.children = list(_plain_tokens(token.children))
        yield token


class MarkdownPainter:
    """Renders for one width and palette."""

    def __init__(self, width: int, palette: Palette) -> None:
        self.width, self.palette = width, palette
        self._console = Console(
            file=io.StringIO(),
            width=width,
            color_system="truecolor",
            force_terminal=True,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
            theme=_rich_theme(palette),
        )

    def markdown(self, text: str) -> list[Strip]:
        """A block of an answer, without blank lines around it."""
        return self._strips(_Markdown(text, self.palette.code_style))

    def plain(self, text: str) -> list[Strip]:
        """Text as it is, wrapped."""
        return self._strips(Text(text.rstrip("\n"), overflow="fold"))

    def question(self, text: str) -> list[Strip]:
        """A question: its text beside a bar, on a ground of its own."""
        options = self._console.options.update(width=self.width - 3)
        lines = self._console.render_lines(Text(text, overflow="fold"), options, style=self.palette.question)
        bar = Segment("▌ ", self.palette.accent + Style(bgcolor=self.palette.question.bgcolor))
        end = Segment(" ", self.palette.question)
        return [_strip([bar, *line, end], self.palette.question, self.width) for line in lines]

    def blank(self) -> Strip:
        """An empty line."""
        return Strip.blank(self.width, self.palette.base)

    def _strips(self, renderable: Markdown | Text) -> list[Strip]:
        lines = self._console.render_lines(renderable, self._console.options.update(width=self.width), pad=False)
        strips = [_strip(line, self.palette.base, self.width) for line in lines]
        while strips and not strips[-1].text.strip():
            strips.pop()
        while strips and not strips[0].text.strip():
            strips.pop(0)
        return strips


def _strip(line: Iterable[Segment], base: Style, width: int) -> Strip:
    segments = [
        Segment(clean(text).replace("\n", " ").replace("\t", " "), base + style if style else base)
        for text, style, control in line
        if text and not control
    ]
    return (
        Strip(segments, sum(cell_len(segment.text) for segment in segments)).adjust_cell_length(width, base).simplify()
    )


def _rich_theme(palette: Palette) -> Theme:
    strong, accent, muted = palette.strong, palette.accent, palette.muted
    italic = Style(italic=True)
    return Theme(
        {
            **{f"markdown.h{level}": accent for level in (1, 2)},
            **{f"markdown.h{level}": strong for level in (3, 4, 5, 6, 7)},
            "markdown.paragraph": Style(),
            "markdown.text": Style(),
            "markdown.em": italic,
            "markdown.strong": Style(bold=True),
            "markdown.s": Style(strike=True),
            "markdown.code": accent + Style(bold=False, bgcolor=palette.code_ground),
            "markdown.code_block": Style(bgcolor=palette.code_ground),
            "markdown.block_quote": muted,
            "markdown.list": Style(),
            "markdown.item": Style(),
            "markdown.item.bullet": muted,
            "markdown.item.number": muted,
            "markdown.hr": muted,
            "markdown.link": Style(underline=True),
            "markdown.link_url": muted,
            "markdown.table.border": muted,
            "markdown.table.header": strong,
        }
    )
