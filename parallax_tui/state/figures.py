"""Numbers as people read them, with their units."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def size(count_bytes: float) -> str:
    """Memory and files: `1.2 GiB`, `104 MiB`."""
    if count_bytes >= 100 * GIB:
        return f"{count_bytes / GIB:.0f} GiB"
    if count_bytes >= GIB:
        return f"{count_bytes / GIB:.1f} GiB"
    if count_bytes >= 10 * MIB:
        return f"{count_bytes / MIB:.0f} MiB"
    return f"{count_bytes / MIB:.1f} MiB"


def duration(milliseconds: float) -> str:
    """`0.8 ms`, `42 ms`, `1.4 s`."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"


def speed(tpot_ms: float) -> str:
    """Tokens per second out of the time per output token; empty where there is none."""
    if tpot_ms <= 0:
        return ""
    rate = 1000 / tpot_ms
    return f"{rate:.0f} tok/s" if rate >= 100 else f"{rate:.1f} tok/s"


def count(number: int, one: str, many: str = "") -> str:
    """`1 node`, `3 nodes`."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def short(number: int) -> str:
    """`812`, `4.1k`, `120k`, `3.2M`: at most five columns for what fits into a table."""
    for divisor, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= divisor:
            scaled = number / divisor
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.1f}{unit}"
    return str(number)
