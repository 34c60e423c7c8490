"""Numbers as people read them: three figures, and no exponent."""

from __future__ import annotations

from math import floor, log10


def figure(value: float) -> str:
    """`0.0123`, `5.62`, `178`, `2,310`."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = min(12, max(0, 2 - floor(log10(abs(value)))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def milliseconds(value: float) -> str:
    """`0.0123 ms`, `178 ms`, `10.2 s`: no more digits than anybody can use."""
    return f"{figure(value / 1000)} s" if abs(value) >= 1000 else f"{figure(value)} ms"
