"""Whether a worker hangs, from what was asked of it and what it said when. No process, no pipe; the clock is given.

The worker has two threads that speak: the one that computes answers requests in their order, and the one that reads
answers pings whatever the other is at. So there are three signs of a hang: the first request of the order is not
answered within its allowance, a load does not go on, or a ping is not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from node.engine.patience import (
    BESIDE_A_LOAD_S,
    LOAD_PROGRESS_S,
    PING_BESIDE_A_LOAD_S,
    PING_EVERY_S,
    PING_S,
    PING_STARTING_S,
)

SHORTEST_SLEEP_S = 0.05


@dataclass(slots=True)
class UnderWay:
    """A request that is not answered yet."""

    what: str
    since_s: float
    """When it was posted, or a load last told that it goes on."""
    allowance_s: float


class Watch:
    """What is under way, and since when nothing was heard of it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.started = False
        """The worker has said that it is ready."""
        self._clock = clock
        self._requests: dict[int, UnderWay] = {}
        """In the order in which they are answered."""
        self._loads: dict[int, UnderWay] = {}
        self._ping: tuple[int, float] | None = None
        """The one under way, and when it was sent."""
        self._computed_s = self._heard_s = clock()
        """When the thread that computes, and either of them, said something last."""
        self._said = ("", 0.0)
        """By the last answer to a ping."""

    # --- what happens -----------------------------------------------------------------------------------------------

    def posted(self, number: int, what: str, allowance_s: float) -> None:
        """A request goes to the worker, to be answered in turn."""
        self._requests[number] = UnderWay(what, self._clock(), allowance_s)

    def load_posted(self, number: int, what: str) -> None:
        """A load goes to the worker, which answers other requests meanwhile."""
        self._loads[number] = UnderWay(what, self._clock(), LOAD_PROGRESS_S)

    def goes_on(self, number: int) -> None:
        """A load has read something."""
        self._computed_s = self._heard_s = self._clock()
        if load := self._loads.get(number):
            load.since_s = self._computed_s

    def replied(self, number: int) -> None:
        """A request is answered."""
        self._computed_s = self._heard_s = self._clock()
        self._requests.pop(number, None)
        self._loads.pop(number, None)

    def pinged(self, number: int) -> None:
        """A ping goes to the worker."""
        self._ping = (number, self._clock())

    def ponged(self, number: int, running: str, since_s: float) -> None:
        """The reading thread answered, and said what the other one is at."""
        self._heard_s = self._clock()
        self._said = (running, since_s)
        if self._ping is not None and self._ping[0] == number:
            self._ping = None

    # --- what follows -----------------------------------------------------------------------------------------------

    def ping_is_due(self) -> bool:
        """Nothing was heard for a while, and no ping is under way."""
        return self._ping is None and self._clock() >= self._heard_s + PING_EVERY_S

    def next_look_s(self) -> float:
        """When to look again: soon enough for what is posted meanwhile, which has more patience than that."""
        now_s = self._clock()
        ping_s = now_s + PING_EVERY_S if self._ping is not None else self._heard_s + PING_EVERY_S
        return max(now_s + SHORTEST_SLEEP_S, min(ping_s, *(until_s for until_s, *_ in self._deadlines())))

    def hangs(self) -> tuple[str, float] | None:
        """What the worker is at and for how long nothing was heard of it, where that is too long."""
        now_s = self._clock()
        late = [(what, now_s - since_s) for until_s, what, since_s in self._deadlines() if now_s >= until_s]
        return late[0] if late else None

    def _deadlines(self) -> Iterator[tuple[float, str, float]]:
        """Until when, for what, since when."""
        yield float("inf"), "", 0.0
        if self._ping is not None:
            sent_s = self._ping[1]
            yield sent_s + self._ping_patience_s(), f"{self._first()} and answered no ping", sent_s
        for request in self._requests.values():
            since_s = max(request.since_s, self._computed_s)
            least_s = BESIDE_A_LOAD_S if self._loads else 0.0
            yield since_s + max(request.allowance_s, least_s), self._first(), since_s
            break  # the others wait for this one
        for load in self._loads.values():
            yield load.since_s + load.allowance_s, f"{load.what}, which did not go on", load.since_s

    def _ping_patience_s(self) -> float:
        if not self.started:
            return PING_STARTING_S
        return PING_BESIDE_A_LOAD_S if self._loads else PING_S

    def _first(self) -> str:
        """What it must be at by what was asked, and what it said itself."""
        asked = next((under_way.what for under_way in (*self._requests.values(), *self._loads.values())), "idle")
        running, since_s = self._said
        return asked if not running else f"{asked} (it last said: {running}, for {since_s:.1f} s)"
