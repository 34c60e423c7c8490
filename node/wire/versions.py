"""Which dialects of the wire this program speaks. Two nodes speak the highest that both know.

Raise `WIRE_VERSION` when an older node could misread what a newer one sends, and `LEAST_WIRE_VERSION` when the older
dialect is no longer spoken: between the two lies a rolling upgrade. New fields, devices, backends and states need
neither: who does not know them leaves fields out, reads a word as `unknown` and passes on the bytes that were signed.
"""

from __future__ import annotations

WIRE_VERSION = 3
LEAST_WIRE_VERSION = 3


def common(ours: tuple[int, int], theirs: tuple[int, int]) -> int | None:
    """The version to speak, from what each side speaks at least and at most; None where there is none."""
    most = min(ours[1], theirs[1])
    return most if most >= max(ours[0], theirs[0]) else None
