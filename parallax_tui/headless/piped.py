"""Text that reaches us as bytes: piped in, or on the command line. Whatever bytes they are, they become text."""

from __future__ import annotations

import codecs
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TELL_AFTER_S = 1.0
"""A program that runs us may leave an open stdin behind in which nothing ever comes."""

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before the mark of UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""How a text may say what it is written in."""


def with_stdin(prompt: str) -> str:
    """The prompt, and below it what is piped in."""
    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    with _telling_that_we_wait():
        piped = text_of(sys.stdin.buffer.read()).strip()
    return f"{prompt}\n\n{piped}" if piped else prompt


def text_of(data: bytes) -> str:
    """UTF-8, what its mark says, or else the old western encoding, in which every byte is a letter."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    text = data.decode(errors="replace")
    broken, whole = text.count("\N{REPLACEMENT CHARACTER}"), sum(character > "\x7f" for character in text)
    if whole > broken:  # mostly UTF-8 with some damage
        return text
    return data.decode("cp1252", errors="replace")


def readable(argument: str) -> str:
    """A word of the command line whose bytes were none of the locale's encoding."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return text_of(os.fsencode(argument))
    return argument


@contextmanager
def _telling_that_we_wait() -> Iterator[None]:
    def tell() -> None:
        print("parallax: reading stdin to its end (ctrl-d, or start with `< /dev/null`)", file=sys.stderr, flush=True)

    timer = threading.Timer(TELL_AFTER_S, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
