"""What keeps a chat template, which comes from strangers, from running or growing without end.

jinja2's sandbox bounds one `range` and no loop in a loop. Every line of the template and every call that it makes is
traced, and ended once the thread has computed too long; what a single step could take without end (powers, repeated
texts, widths) is bounded where it is made. The time is the thread's own, so that a loaded machine refuses nobody.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2.runtime import Context

MOST_CPU_S = 1.5
"""For one rendering; 20,000 short messages take half a second."""
LOOK_EVERY = 16
"""Traced lines and calls between two looks at the clock, which costs as much as a line."""
MOST_SIZE = 32 * 2**20
"""Characters or items that one step may make: several times what a request may be long."""
MOST_BITS = 10_000
"""Of a whole number; it cannot even be written down where it has more."""

_WIDE = re.compile(r"\d{6,}")


class TemplateTooLong(BaseException):
    """A rendering has been ended."""


class TooLarge(ValueError):
    """A step would have made too large a value."""


@contextmanager
def bounded_time(filename: str, most_cpu_s: float = MOST_CPU_S) -> Iterator[None]:
    """End the block, in this thread, once it has computed for `most_cpu_s`.

    Args:
        filename: of the code whose every line is looked at; of other code each call is.

    Raises:
        TemplateTooLong: it has.
    """
    end_s = time.thread_time() + most_cpu_s
    steps = 0

    def on_step(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        steps += 1
        if steps % LOOK_EVERY == 0 and time.thread_time() > end_s:
            raise TemplateTooLong
        return on_step if frame.f_code.co_filename == filename else None

    before = sys.gettrace()
    sys.settrace(on_step)
    try:
        yield
    finally:
        sys.settrace(before)


def check_operation(operator: str, left: object, right: object) -> None:
    """Look at `left operator right` before it is computed.

    Raises:
        TooLarge: its result would be.
    """
    if operator == "*":
        counts = [value for value in (left, right) if isinstance(value, int)]
        lengths = [length for value in (left, right) if (length := _length(value))]
        if lengths and counts:
            _check(lengths[0] * counts[0])
        elif len(counts) == 2:
            _check(sum(count.bit_length() for count in counts), MOST_BITS)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() * max(right, 0), MOST_BITS)
    elif operator == "%" and isinstance(left, str) and (_WIDE.search(left) or "*" in left):
        raise TooLarge("a width of that many characters")


def check_text_call(function: object, arguments: tuple[object, ...]) -> None:
    """Look at a call of a text's own method (`ljust`, `replace`, `format` …) before it is made.

    Raises:
        TooLarge: its result would be.
    """
    text = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    if not isinstance(text, str):
        return
    for argument in arguments:
        if isinstance(argument, int):
            _check(len(text) + argument)
        elif isinstance(argument, list | tuple):  # of `join`
            _check(sum(len(text) + (_length(item) or 0) for item in argument))
    if getattr(function, "__name__", "") == "replace" and len(arguments) > 1:
        _check(len(text) * (_length(arguments[1]) or 0))
    if getattr(function, "__name__", "").startswith("format") and (_WIDE.search(text) or "{:{" in text):
        raise TooLarge("a width of that many characters")


def joined(parts: Any) -> str:
    """The texts of all parts, one after the other: what `~` makes.

    Raises:
        TooLarge: it is.
    """
    texts = [str(part) for part in parts]
    _check(sum(map(len, texts)))
    return "".join(texts)


def bounded_environment(base: Any) -> Any:
    """The sandboxed environment class `base` with these bounds."""

    class Bounded(base):  # type: ignore[misc]
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
            if operator != "+":
                check_operation(operator, left, right)
                return super().call_binop(context, operator, left, right)
            made = left + right  # type: ignore[operator]  # at most twice as long: soon enough to look at it then
            if isinstance(made, str | list | tuple) and len(made) > MOST_SIZE:
                raise TooLarge("a value of millions of characters")
            return made

        def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            check_text_call(__obj, (*args, *kwargs.values()))
            return super().call(__context, __obj, *args, **kwargs)

    return Bounded


def bounded_filter(function: Any) -> Any:
    """A filter of the library that makes texts of any width, with its whole numbers and widths bounded."""

    def bounded(text: object, *arguments: Any, **named: Any) -> Any:
        if function.__name__ == "do_format":
            check_operation("%", text, arguments)
        for argument in (*arguments, *named.values()):
            if isinstance(argument, int):
                _check((_length(text) or 0) + argument)
        return function(text, *arguments, **named)

    return bounded


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, str | list | tuple) else None


def _check(size: int, most: int = MOST_SIZE) -> None:
    if size > most:
        raise TooLarge("a value of millions of characters or digits")
