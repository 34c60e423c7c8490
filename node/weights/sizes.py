"""Which rows of a joined tensor belong to which role."""

from __future__ import annotations

from dataclasses import dataclass

from node.weights.families import Rows


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """Rows of a model's queries, keys and values."""

    queries: int
    keys: int
    values: int

    def span(self, rows: Rows, total: int) -> tuple[int, int] | None:
        """First row and the one after the last; None where a tensor of `total` rows does not join what it should."""
        if rows in ("gate", "up"):
            half = total // 2
            return None if total % 2 else (0, half) if rows == "gate" else (half, total)
        ends = [self.queries, self.queries + self.keys, self.queries + self.keys + self.values]
        if ends[-1] != total:
            return None
        place = ("q", "k", "v").index(rows)
        return ([0, *ends][place], ends[place])
