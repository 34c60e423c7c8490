"""Makes a model's output safe to show: a terminal obeys control characters, and a model can write any character."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
"""All control characters but tab and newline; marks that turn the reading direction (a sentence must not look like
another one); characters of no width, tags among them, that hide a text in a text. Joiners stay: emoji families and
whole scripts are written with them."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of a character, which cannot be encoded."""
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\x85]")


def clean(text: str) -> str:
    """The text with newlines and tabs, but without anything that a terminal would obey."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", _LINE_ENDS.sub("\n", text)))
