"""Text around thoughts and calls, without the empty lines that only stand between them."""

from __future__ import annotations

from collections.abc import Callable


class Tidy:
    """Passes text on; white space waits until something follows that it stands before."""

    def __init__(self, out: Callable[[str], object], *, fresh: bool = False) -> None:
        """Args:
        fresh: a thought or a call came before, so white space at the very start means nothing.
        """
        self._out, self._fresh = out, fresh
        self._blank: list[str] = []

    def __call__(self, text: str) -> None:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        words = text.rstrip()
        if words:
            self._out("".join(self._blank) + words)
            self._blank = []
        self._blank.append(text[len(words) :])

    @property
    def blank(self) -> str:
        """What waits."""
        return "" if self._fresh else "".join(self._blank)
