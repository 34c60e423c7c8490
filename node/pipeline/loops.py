"""Where an answer goes round: the same words again and again, which very small models do without an end. Pure."""

from __future__ import annotations

LONGEST_ROUND_TOKENS = 32
"""Of what is looked for. A longer one is a text that repeats itself, as some are meant to."""
ROUNDS = 4
"""So often in a row, without one token of difference, is no refrain."""
LEAST_TOKENS = 48
"""All rounds together: a row of dots or zeros may be meant."""


class LoopGuard:
    """Sees it in the tokens of one answer, in some microseconds each."""

    def __init__(self) -> None:
        self._last: list[int] = []
        """The newest ones, oldest first."""
        self._same = [0] * (LONGEST_ROUND_TOKENS + 1)
        """By length of a round: how many of the newest tokens in a row were what came one round before them."""

    def goes_round(self, token: int) -> bool:
        """Take the next token; whether the answer has been going round up to it."""
        found = False
        for length in range(1, len(self._last) + 1):
            same = self._same[length] + 1 if self._last[-length] == token else 0
            self._same[length] = same
            found = found or (same >= (ROUNDS - 1) * length and same + length >= LEAST_TOKENS)
        self._last = [*self._last[1 - LONGEST_ROUND_TOKENS :], token]
        return found
