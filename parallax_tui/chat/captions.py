"""The line under an answer: how long, how fast, over how many hops, and which of them was slowest."""

from __future__ import annotations

from parallax_tui.chat.conversation import Message
from parallax_tui.state.cells import Cell, Line, safe, wrapped
from parallax_tui.state.figures import count, duration, speed


def caption(message: Message, width: int) -> tuple[Line, ...]:
    """Lines under an answer; none under a question."""
    if message.role == "user":
        return ()
    if message.status == "running":
        return () if message.text else ((Cell("◌ ", "accent"), Cell("reading your question…", "muted")),)
    if message.status == "failed":
        pieces = wrapped(message.problem, width - 2)
        return tuple((Cell("✕ " if i == 0 else "  ", "bad"), Cell(piece, "bad")) for i, piece in enumerate(pieces))
    parts = ["■ stopped"] if message.status == "stopped" else []
    if figures := message.figures:
        parts += ["cut at its length limit"] if figures.reason == "length" else []
        parts += [f"TTFT {duration(figures.ttft_ms)}"] if figures.ttft_ms else []
        parts += [speed(figures.tpot_ms)] if figures.tpot_ms else []
        parts += [count(figures.tokens, "token")] if figures.tokens else []
        if len(figures.hops) > 1:
            slowest = max(figures.hops, key=lambda hop: hop.total_ms)
            parts.append(f"{len(figures.hops)} hops, slowest {safe(slowest.name)} {duration(slowest.total_ms)}")
    return tuple((Cell(piece, "faint"),) for piece in wrapped(" · ".join(parts), width))
