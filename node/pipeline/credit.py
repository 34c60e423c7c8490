"""How many rows of each sequence may be under way, so that what waits here is bounded in bytes whoever sends.

A stage sets memory aside for the rows of a sequence when it takes it, as it does for its KV, and tells the head how
many they may be. A head keeps to the least that the stages of its chain have told, from the first stage to the tail;
rows beyond it are refused. So neither what waits for an engine nor what waits for a link outgrows what was set aside,
and no cycle of full queues can form. What a sequence gets beyond its first chunk comes out of half of that memory: a
few long prompts leave room for many others to begin. Once a prompt is through, most of it is given back.
"""

from __future__ import annotations

from node.plan.chain_time import CHUNK_TOKENS

FIRST_ROWS = CHUNK_TOKENS
"""That a head may send before any stage has told it more, so that a short prompt waits for no answer. Every stage that
takes a sequence has room for them."""

DECODE_ROWS = 16
"""Of a sequence whose prompt is through: one row in a ring, a draft where the head feeds it."""

INBOX_BYTES = 128 * 1024 * 1024
"""Of rows that wait at a node, over all sequences: 32 prompts of a model 8,192 wide in fp32, thousands of answers."""


class Credits:
    """What is set aside for the rows of this node's sequences."""

    def __init__(self, budget_bytes: int = INBOX_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._given: dict[object, tuple[int, int]] = {}
        """By sequence: rows, and bytes of each."""

    @property
    def budget_bytes(self) -> int:
        """All that there is."""
        return self._budget_bytes

    @property
    def free_bytes(self) -> int:
        return self._budget_bytes - sum(rows * row_bytes for rows, row_bytes in self._given.values())

    def bytes_of(self, owner: object) -> int:
        """What it has."""
        rows, row_bytes = self._given.get(owner, (0, 0))
        return rows * row_bytes

    def give(self, owner: object, wanted_rows: int, row_bytes: int, least_rows: int = FIRST_ROWS) -> int:
        """Rows that `owner` may have here, `least_rows` or more; 0 where there is no room even for those. Replaces what
        it had."""
        self.take_back(owner)
        free_bytes = self.free_bytes
        if least_rows * row_bytes > free_bytes:
            return 0
        spare_rows = (free_bytes - self._budget_bytes // 2) // row_bytes
        rows = max(least_rows, min(wanted_rows, spare_rows))
        self._given[owner] = rows, row_bytes
        return rows

    def shrink(self, owner: object, rows: int) -> int:
        """It needs no more than so many from now on; what it has then."""
        had, row_bytes = self._given.get(owner, (0, 0))
        if rows < had:
            self._given[owner] = rows, row_bytes
        return min(rows, had)

    def take_back(self, owner: object) -> None:
        """It has ended."""
        self._given.pop(owner, None)
