"""Reads text that comes in pieces, so that who understands a family's marks can be written as if all were there.

A script is a generator that asks a `Reading` for what comes next, as in `yield from reading.until("</tool_call>")`;
where that is not here yet, it waits at its `yield`. Every character is looked at a bounded number of times: what a
search has passed over it does not see again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from node.api.speech.said import Arguments, CallBegun, CallEnded, Said, Text, Thought

T = TypeVar("T")
Script = Generator[None, None, T]
"""Goes on as soon as there is more text, or none will come."""

MOST_HEADER = 512
"""Characters of what stands before a call's arguments. Longer ones are no name."""

_CLOSES = {"{": "}", "[": "]"}
_IN_TEXT = re.compile(r'["\\]')
_BETWEEN = re.compile(r'["{}\[\]]')
_SCALAR_END = re.compile(r"[\s,}\]]")


class Reading:
    """The text that is not understood yet, and what was said so far."""

    def __init__(self, script: Callable[[Reading], Script[None]]) -> None:
        self._text = ""
        self._ended = False
        self._said: list[Said] = []
        self.calls = 0
        """How many have begun."""
        self.blank = ""
        """White space before what may be a call: a call takes it away, text is said with it."""
        self._script = script(self)
        self._over = False

    # --- from outside -----------------------------------------------------------------------------------------------

    def push(self, text: str) -> list[Said]:
        """What this text completes."""
        if not text:
            return []
        self._text += text
        return self._go_on()

    def finish(self) -> list[Said]:
        """What was held back, once no more text can come."""
        self._ended = True
        return self._go_on()

    def _go_on(self) -> list[Said]:
        if not self._over:
            try:
                next(self._script)
            except StopIteration:
                self._over = True
        if self._over and self._text:
            self.say(self.take(len(self._text)))
        said, self._said = self._said, []
        return said

    # --- for scripts: what comes ------------------------------------------------------------------------------------

    @property
    def here(self) -> str:
        """The text that has come and was not taken."""
        return self._text

    @property
    def at_end(self) -> bool:
        """Nothing is left, and nothing will come."""
        return self._ended and not self._text

    def take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken

    def more(self) -> Script[bool]:
        """Wait for more text; False where none will come."""
        if self._ended:
            return False
        yield
        return True

    def at_least(self, count: int) -> Script[bool]:
        """Wait until so many characters are here; False where fewer will come."""
        while len(self._text) < count:
            if not (yield from self.more()):
                return False
        return True

    def begins(self, mark: str) -> Script[bool]:
        """Whether the mark comes next; takes it if so."""
        while len(self._text) < len(mark) and mark.startswith(self._text):
            if not (yield from self.more()):
                return False
        if not self._text.startswith(mark):
            return False
        self.take(len(mark))
        return True

    def spaces(self) -> Script[str]:
        """Take white space, up to something else or the end."""
        taken: list[str] = []
        while True:
            rest = self._text.lstrip()
            taken.append(self.take(len(self._text) - len(rest)))
            if rest or not (yield from self.more()):
                return "".join(taken)

    def until(self, *marks: str) -> Script[tuple[str, str]]:
        """The text up to the first of the marks, and which it is; "" where none comes. Takes both."""
        parts: list[str] = []
        found = yield from self.pass_until(marks, parts.append)
        return "".join(parts), found

    def pass_until(self, marks: Sequence[str], out: Callable[[str], object]) -> Script[str]:
        """The same, with the text given to `out` as it comes; what may be the start of a mark waits."""
        while True:
            found = [(at, mark) for mark in marks if (at := self._text.find(mark)) >= 0]
            if found:
                at, mark = min(found, key=lambda each: (each[0], -len(each[1])))
                if at:
                    out(self.take(at))
                self.take(len(mark))
                return mark
            keep = 0 if self._ended else max(_overlap(self._text, mark) for mark in marks)
            if len(self._text) > keep:
                out(self.take(len(self._text) - keep))
            if not (yield from self.more()):
                return ""

    def matches(self, pattern: re.Pattern[str], most: int = MOST_HEADER) -> Script[re.Match[str] | None]:
        """What the pattern finds at the start, once it is there; takes it. None where it is not within `most`
        characters. A pattern ends in what cannot go on."""
        while True:
            match = pattern.match(self._text)
            if match is not None:
                self.take(match.end())
                return match
            if len(self._text) > most or not (yield from self.more()):
                return None

    def json_value(self, out: Callable[[str], object]) -> Script[bool]:
        """Give one JSON value to `out` as it comes. Whether it came to its end; it is not checked any further."""
        if not (yield from self.at_least(1)):
            return False
        if self._text[0] == '"':
            out(self.take(1))
            return (yield from self._json_text(out))
        if self._text[0] not in _CLOSES:
            while (match := _SCALAR_END.search(self._text)) is None:
                out(self.take(len(self._text)))
                if not (yield from self.more()):
                    return False
            out(self.take(match.start()))
            return True
        open_: list[str] = []
        while True:
            match = _BETWEEN.search(self._text)
            if match is None:
                out(self.take(len(self._text)))
                if not (yield from self.more()):
                    return False
                continue
            mark = match[0]
            out(self.take(match.end()))
            if mark == '"':
                if not (yield from self._json_text(out)):
                    return False
            elif mark in _CLOSES:
                open_.append(_CLOSES[mark])
            elif open_.pop() != mark:
                return False
            elif not open_:
                return True

    def _json_text(self, out: Callable[[str], object]) -> Script[bool]:
        """The rest of a JSON string whose first quotation mark was taken."""
        while True:
            match = _IN_TEXT.search(self._text)
            if match is None:
                if self._text:
                    out(self.take(len(self._text)))
                if not (yield from self.more()):
                    return False
            elif match[0] == '"':
                out(self.take(match.end()))
                return True
            else:
                if match.end() == len(self._text) and not (yield from self.more()):
                    out(self.take(match.end()))
                    return False
                out(self.take(match.end() + 1))

    # --- for scripts: what to say -----------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if not text:
            return
        match self._said:
            case [*_, Text(text=before)]:
                self._said[-1] = Text(before + self.blank + text)
            case _:
                self._said.append(Text(self.blank + text))
        self.blank = ""

    def think(self, text: str) -> None:
        if not text:
            return
        match self._said:
            case [*_, Thought(text=before)]:
                self._said[-1] = Thought(before + text)
            case _:
                self._said.append(Thought(text))

    def call(self, name: str, call_id: str = "") -> Callable[[str], None]:
        """A call begins; what is returned takes its arguments."""
        index = self.calls
        self.calls += 1
        self.blank = ""
        self._said.append(CallBegun(index, call_id or new_call_id(), name))

        def arguments(text: str) -> None:
            if not text:
                return
            match self._said:
                case [*_, Arguments(index=same, text=before)] if same == index:
                    self._said[-1] = Arguments(index, before + text)
                case _:
                    self._said.append(Arguments(index, text))

        return arguments

    def call_ends(self) -> None:
        """The last call that began is whole."""
        self._said.append(CallEnded(self.calls - 1))


def new_call_id() -> str:
    """Nine letters and digits would do for every family but OpenAI's clients, some of which look for `call_`."""
    return f"call_{secrets.token_hex(12)}"


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
