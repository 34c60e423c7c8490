"""What a worker says on its stderr: bounded, printable, kept to say why it ended."""

from __future__ import annotations

from collections import deque

KEPT_BYTES = 8192
TAIL_LINES = 6
TAIL_CHARACTERS = 1000


class LastWords:
    """The tail of a stream of bytes that nobody vouches for."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def add(self, words: bytes) -> None:
        """More of it."""
        self._kept = (self._kept + words)[-KEPT_BYTES:]

    @property
    def sentence(self) -> str:
        """The last line that says something: of a traceback, its error."""
        return (lines_of(self._kept) or [""])[-1][:500]

    @property
    def tail(self) -> str:
        """The last lines that say something, for a log."""
        return "\n".join(deque(lines_of(self._kept), TAIL_LINES))[-TAIL_CHARACTERS:]


def lines_of(words: bytes | bytearray) -> list[str]:
    """Lines that say something, printable."""
    lines = (printable(line).rstrip() for line in words.decode(errors="replace").splitlines())
    return [line for line in lines if line.strip()]


def printable(text: str) -> str:
    """Without what would steer a terminal or forge a line of a log."""
    return "".join(character if character.isprintable() else " " for character in text)


class LineBudget:
    """So many lines in so many seconds go to the log; a library that floods its stderr does not flood ours."""

    def __init__(self, lines: int, per_s: float) -> None:
        self._lines, self._per_s = lines, per_s
        self._begun_s, self._used, self._dropped = float("-inf"), 0, 0

    def take(self, lines: list[str], now_s: float) -> list[str]:
        """Those of the lines that may be logged, and where some before were not, how many."""
        if now_s - self._begun_s >= self._per_s:
            dropped, self._begun_s, self._used, self._dropped = self._dropped, now_s, 0, 0
            if dropped:
                lines = [f"({dropped} lines left out)", *lines]
        taken = lines[: max(0, self._lines - self._used)]
        self._used += len(taken)
        self._dropped += len(lines) - len(taken)
        return taken
