"""From token ids, one at a time, to text that only ever grows. Knows no model, only how to decode a list of ids.

The library has `tokenizers.decoders.DecodeStream`, which holds back without end what ends in U+FFFD, and decodes all of
it again for every token: a model that repeats that character costs it the square of the answer's length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

INCOMPLETE = "\ufffd"
"""What a decoder gives for bytes that are no whole character (yet)."""

MOST_PENDING_TOKENS = 8
"""A character has four bytes at most, and a token one at least: what is still no character after so many tokens never
becomes one, and is given out."""

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Decodes an answer incrementally, in time that does not grow with the answer.

    A decoder looks at neighbours (a space at the very start falls away, bytes join to a character), so new tokens are
    decoded together with the last ones that gave text, and only what comes after that text is given out.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []
        """Tokens whose text was given out: the neighbours of what comes."""
        self._pending: list[int] = []
        """Fewer than `MOST_PENDING_TOKENS` whose text was not, since it ends within a character."""

    def push(self, token: int) -> str:
        """The text that `token` completes: often empty, never half a character."""
        self._pending.append(token)
        text = self._after(self._context, self._pending)
        given, kept = len(self._pending), ""
        if text.endswith(INCOMPLETE):
            if len(self._pending) < MOST_PENDING_TOKENS:
                return ""
            given, kept = self._ripe(text)
        if text:
            self._context, self._pending = self._pending[:given], self._pending[given:]
        return text.removesuffix(kept)

    def finish(self) -> str:
        """What was held back, without the half of a character that it may end in: nothing follows to complete it."""
        text = self._after(self._context, self._pending) if self._pending else ""
        self._context, self._pending = [], []
        return text.rstrip(INCOMPLETE)

    def _ripe(self, text: str) -> tuple[int, str]:
        """How many pending tokens to give out, and the text of the others: a cut between two characters, as early as
        there is one, for the last few tokens may still be a character's beginning."""
        for given in range(1, len(self._pending)):
            context, rest = self._pending[:given], self._pending[given:]
            kept = self._after(context, rest)
            if self._after(self._context, context) + kept == text:
                return given, kept
        return len(self._pending), ""

    def _after(self, context: list[int], tokens: list[int]) -> str:
        """The text of `tokens` where they follow `context`."""
        before = self._decode(context) if context else ""
        both = self._decode([*context, *tokens])
        if both.startswith(before):
            return both[len(before) :]
        return self._decode(tokens)  # the neighbours would change what was already given out


class MarkedStream:
    """The same, where some special tokens, which a decoder leaves out, are spelled in the text."""

    def __init__(self, decode: Decode, marks: Mapping[int, str]) -> None:
        self._decode, self._marks = decode, marks
        self._text = TextStream(decode)

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        mark = self._marks.get(token)
        if mark is None:
            return self._text.push(token)
        text = self._text.finish() + mark
        self._text = TextStream(self._decode)
        return text

    def finish(self) -> str:
        """What was held back."""
        return self._text.finish()
