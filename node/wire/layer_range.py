"""How a range of layers is written wherever a person reads it. `node.notation` reads what people write."""

from __future__ import annotations


def layer_range(start: int, end: int) -> str:
    """Layers [start, end) as people count them, the last included: `10–19`, or `7`; an empty range as it was given."""
    if end <= start:
        return f"{start}:{end}"
    return f"{start}–{end - 1}" if end - start > 1 else f"{start}"
