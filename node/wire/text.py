"""What others call themselves and tell us, made safe for a terminal, a log and a person's eye.

Whoever prints text of a peer, a model file or a library asks this one function. It knows characters, not meanings: what
a terminal obeys (controls), what nobody sees (zero-width, tags, fillers) and what turns the reading direction around
stands as one visible mark, so that two names that look alike are alike, and a line of a log is one line.
"""

from __future__ import annotations

import unicodedata

MARK = "\N{REPLACEMENT CHARACTER}"
"""Stands for each character that must not be shown."""

ELLIPSIS = "…"

_JOINERS = "\u200c\u200d"
"""Zero-width joiners spell Persian and Indic words and emoji families: kept between two characters that may need them,
never beside ASCII, where they only hide."""

_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Fillers that are letters or marks by category, and show nothing."""

_SPACES = frozenset(("Zs", "Zl", "Zp"))
_UNSAFE = frozenset(("Cc", "Cf", "Cn", "Co", "Cs"))
"""Controls (ANSI begins with one), formats (zero-width, bidi, tags, U+FFF9-FFFB, soft hyphen), and what has no
character: unassigned, private, surrogates."""


def printable(text: str, limit: int | None = None) -> str:
    """One line of `text` that is safe to show, at most `limit` characters long; an ellipsis tells where it was cut.

    White space of every kind becomes a plain space. To ask twice changes nothing.
    """
    if limit is not None and len(text) > limit:
        text = text[: max(0, limit - 1)] + ELLIPSIS if limit > 0 else ""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(text, index) for index in range(len(text)))


def _shown(text: str, index: int) -> str:
    character = text[index]
    if " " <= character <= "~":
        return character
    if character in "\t\n\r\x0b\x0c\x85":
        return " "
    category = unicodedata.category(character)
    if category in _SPACES:
        return " "
    if character in _JOINERS:
        return character if _joins(text, index) else MARK
    if category in _UNSAFE or character in _UNSEEN or "\U000e0100" <= character <= "\U000e01ef":
        return MARK
    return character


def _joins(text: str, index: int) -> bool:
    """Whether a joiner stands between two characters that are seen and not ASCII."""
    around = text[index - 1 : index] + text[index + 1 : index + 2]
    return len(around) == 2 and all(
        not each.isascii() and each not in _UNSEEN and unicodedata.category(each) not in _UNSAFE | _SPACES
        for each in around
    )
