"""An answer that is told as a whole: its parts put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from node.api.asking import Ended
from node.api.speech.said import Arguments, CallBegun, CallEnded, Said, Text, Thought


@dataclass(slots=True)
class GatheredCall:
    """One call of a tool."""

    id: str
    name: str
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.parts) or "{}"


@dataclass(slots=True)
class Gathered:
    """One choice."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[GatheredCall] = field(default_factory=list)
    ended: Ended = field(default_factory=lambda: Ended("stop"))

    def add(self, said: Said | Ended) -> None:
        match said:
            case Text(text=text):
                self.texts.append(text)
            case Thought(text=text):
                self.thoughts.append(text)
            case CallBegun(id=call_id, name=name):
                self.calls.append(GatheredCall(call_id, name))
            case Arguments(index=index, text=text):
                self.calls[index].parts.append(text)
            case Ended():
                self.ended = said
            case CallEnded():
                pass

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def thought(self) -> str:
        return "".join(self.thoughts)


async def gathered(events: AsyncIterator[tuple[int, Said | Ended]], count: int) -> list[Gathered]:
    """All choices. Raises what `events` raises."""
    choices = [Gathered() for _ in range(count)]
    async for choice, said in events:
        choices[choice].add(said)
    return choices
