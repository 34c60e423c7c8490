"""Toned text in cells: what a view model hands to a widget. Knows tones by name, never colours.

A widget maps each tone to the theme; a tone never carries a meaning alone, the text beside it says the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, set_cell_size

from node.wire.text import printable

Tone = Literal[
    "plain",
    "muted",
    "faint",
    "strong",
    "accent",
    "good",
    "warn",
    "bad",
    "wire",
    "queue",
    "compute",
    "serialise",
    "node-1",
    "node-2",
    "node-3",
    "node-4",
]
NODE_TONES: tuple[Tone, ...] = ("node-1", "node-2", "node-3", "node-4")
"""Neighbours on the layer map differ; four are enough for that, and keep the screen calm."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of text in one tone."""

    text: str
    tone: Tone = "plain"

    @property
    def width(self) -> int:
        """Terminal columns."""
        return cell_len(self.text)


Line = tuple[Cell, ...]


def safe(text: str) -> str:
    """One line of foreign text (names, problems, notices come from peers) that a terminal can be given."""
    return printable(text)


def width_of(line: Iterable[Cell]) -> int:
    """Terminal columns of the line."""
    return sum(cell.width for cell in line)


def text_of(line: Iterable[Cell]) -> str:
    """The line without tones."""
    return "".join(cell.text for cell in line)


def shorten(text: str, width: int) -> str:
    """The text in at most `width` columns; an ellipsis stands for what is cut."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else set_cell_size(text, max(0, width))


def padded(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly `width` columns, shortened where it is longer."""
    text = shorten(text, width)
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces where there are any."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while cell_len(word) > width > 0:
            room = width - cell_len(line) - 1 if line else width
            if line and room < max(2, width // 3):
                lines.append(line)
                line, room = "", width
            piece = (
                set_cell_size(word, room).rstrip() or word[0]
            )  # a wide character in one column: better cut than lost
            line = f"{line} {piece}" if line else piece
            lines.append(line)
            line, word = "", word[len(piece) :]
        if line and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line and word else line or word
    return [*lines, line] if line else lines


def fitted(parts: Iterable[tuple[int, Line]], width: int, gap: str = "  ") -> Line:
    """The parts that fit into `width` columns side by side, in their order. Those with the highest number go first."""
    kept = list(parts)
    while len(kept) > 1 and sum(width_of(part) for _, part in kept) + len(gap) * (len(kept) - 1) > width:
        kept.remove(max(reversed(kept), key=lambda part: part[0]))
    line: list[Cell] = []
    for index, (_, part) in enumerate(kept):
        line += [Cell(gap), *part] if index else part
    return tuple(line)
