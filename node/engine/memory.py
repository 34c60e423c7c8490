"""The memory that stages of one worker share: for all weights, each tensor once, and for every sequence's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet


class Keeper(Protocol):
    """Who keeps caches of sequences that have ended while there is room."""

    @property
    def kept_bytes(self) -> int: ...
    def drop_oldest_kept(self) -> None: ...


class WorkerMemory:
    """How much is left for caches. A stage's weights and the cache it may fill alone make the budget; the widest one
    counts, so that a stage made of another's tensors has the same room as that one, not room of its own."""

    def __init__(self, weight_bytes: Callable[[], int]) -> None:
        self.reserved_bytes = 0
        """By all sequences, for their keys and values."""
        self.keepers: WeakSet[Keeper] = WeakSet()
        """Who keeps caches of sequences that have ended."""
        self._coming_bytes = 0
        self._weight_bytes = weight_bytes
        """Of all tensors that are there now, those of stages that are not in service yet too."""
        self._budgets: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    @property
    def coming_bytes(self) -> int:
        """Weights that are still to be read by loads under way: nobody else may count on that memory."""
        return self._coming_bytes

    @coming_bytes.setter
    def coming_bytes(self, coming_bytes: int) -> None:
        self._coming_bytes = coming_bytes
        self.give_up_kept()

    def give_up_kept(self) -> None:
        """Drop what is kept, until all that is taken has its room; first where most is."""
        while (keepers := [keeper for keeper in self.keepers if keeper.kept_bytes]) and (
            sum(keeper.kept_bytes for keeper in keepers) > self.free_bytes
        ):
            max(keepers, key=lambda keeper: keeper.kept_bytes).drop_oldest_kept()

    @property
    def free_bytes(self) -> int:
        """For further sequences. Less while a second range is loaded beside the first, more again without it."""
        taken = self._weight_bytes() + self._coming_bytes + self.reserved_bytes
        return max(0, max(self._budgets.values(), default=0) - taken)

    def enter(self, stage: object, budget_bytes: int) -> None:
        """A stage is loaded, which alone may take `budget_bytes` for weights and caches."""
        self._budgets[stage] = budget_bytes

    def leave(self, stage: object) -> None:
        """A stage is closed."""
        self._budgets.pop(stage, None)
