"""Server-sent events out of a stream of text, line by line. No I/O.

Only what the OpenAI protocol uses: `data:` fields and blank lines. Everything else is passed over.
"""

from __future__ import annotations


class SseParser:
    """Feed it lines without their ends; it hands out the data of each event that is complete."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> str | None:
        """The event's data if this line ends one, else None."""
        if not line:
            data, self._data = self._data, []
            return "\n".join(data) if data else None
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
        return None
