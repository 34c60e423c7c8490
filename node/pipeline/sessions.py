"""The sequences that are open at this node, and what they take of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import trio

from node.engine.base import Stage
from node.pipeline.stage_session import Key, StageSession

REMEMBERED = 4096
"""Sequences whose age is known. One that is taken up again after so many others counts as new."""


class Sessions:
    """By session and hop. Those whose chain is broken are in it for as long as their KV is kept."""

    def __init__(self) -> None:
        self._all: dict[Key, StageSession] = {}
        self._since_s: OrderedDict[str, float] = OrderedDict()
        """Of sequences that are open, or were a while ago: when they came for the first time."""
        self.changed = trio.Event()
        """Set, and replaced, when a sequence begins or ends here."""

    def __iter__(self) -> Iterator[StageSession]:
        """A copy's: sequences may come and go meanwhile."""
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, session: object) -> bool:
        return isinstance(session, StageSession) and self._all.get(session.key) is session

    def get(self, key: Key) -> StageSession | None:
        return self._all.get(key)

    def of(self, session: str) -> list[StageSession]:
        """All hops that this node is of one sequence."""
        return [each for (name, _), each in self._all.items() if name == session]

    def add(self, session: StageSession) -> None:
        self._all[session.key] = session
        self.note()

    def remove(self, session: StageSession) -> bool:
        """Whether it was there."""
        if session not in self:
            return False
        del self._all[session.key]
        self.note()
        return True

    def note(self) -> None:
        """What is open has changed."""
        self.changed.set()
        self.changed = trio.Event()

    def since_s(self, session: str) -> float:
        """When a sequence came here for the first time: now, where it is not known."""
        since_s = self._since_s.pop(session, trio.current_time())
        self._since_s[session] = since_s
        while len(self._since_s) > REMEMBERED:
            self._since_s.popitem(last=False)
        return since_s

    def running(self) -> list[StageSession]:
        """Those whose chain is whole, as far as is known here."""
        return [session for session in self._all.values() if session.suspended_s is None]

    @property
    def count(self) -> int:
        """Sequences; one that comes here twice counts once."""
        return len({session for session, _ in self._all})

    @property
    def load(self) -> float:
        """Of them: how many are here at a time when each is spread evenly over its chain."""
        return sum(1 / len(session.route.chain) for session in self.running())

    @property
    def reserved_bytes(self) -> int:
        """KV cache that they take, each on its own layers."""
        return sum(session.reserved_bytes for session in self._all.values())

    def on(self, stage: Stage) -> list[StageSession]:
        return [session for session in self._all.values() if session.stage is stage]
