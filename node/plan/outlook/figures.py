"""Numbers as people read them: three figures, and no exponent."""


def figure(value: float) -> str:
    """`0.0123`, `5.62`, `178`, `2,310`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
