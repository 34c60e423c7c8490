"""From token ids, one at a time, to text that only ever grows. Knows no model, only how to decode a list of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What a decoder gives for bytes that are no whole character (yet)."""

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Decodes an answer incrementally.

    A decoder looks at neighbours (a space at the very start falls away, bytes join to a character), so new tokens are
    decoded together with the last ones that gave text, and only what comes after that text is given out.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []
        """Tokens whose text was given out: the neighbours of what comes."""
        self._pending: list[int] = []
        """Tokens whose text was not, since it ends within a character."""

    def push(self, token: int) -> str:
        """The text that `token` completes: often empty, never half a character."""
        self._pending.append(token)
        text = self._new_text()
        if text.endswith(INCOMPLETE):
            return ""
        if text:
            self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """What was held back; bytes that never became a character show as U+FFFD."""
        text = self._new_text()
        self._context, self._pending = [], []
        return text

    def _new_text(self) -> str:
        if not self._pending:
            return ""
        before = self._decode(self._context)
        both = self._decode([*self._context, *self._pending])
        if both.startswith(before):
            return both[len(before) :]
        return self._decode(self._pending)  # the neighbours would change what was already given out
