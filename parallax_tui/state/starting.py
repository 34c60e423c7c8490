"""The way to the first answer: the node starts, its model is fetched, converted and loaded."""

from __future__ import annotations

from typing import Literal

from node.journal.state import ModelStatus
from parallax_tui.state.cells import Cell, Line, Tone, fitted, safe, shorten, width_of, wrapped
from parallax_tui.state.figures import size
from parallax_tui.state.live import Live

Phase = Literal["none", "fetch", "convert", "load", "ready", "failed"]
_PHASES: tuple[Phase, ...] = ("fetch", "convert", "load", "ready")
_TITLES: dict[Phase, str] = {"fetch": "fetch the model", "convert": "convert it", "load": "load its layers"}
LAST_WORDS = 8
"""Lines of a dead node's standard error that are shown."""


def progress_bar(model: ModelStatus, width: int) -> Line:
    """`██████░░░░`, as full as the phase is; empty where its end is not known."""
    if model.total_bytes <= 0:
        return ()
    full = round(width * min(1.0, model.done_bytes / model.total_bytes))
    return (Cell("█" * full, "accent"), Cell("░" * (width - full), "faint"))


def progress_text(model: ModelStatus) -> str:
    """`54 of 104 MiB · 52 %`."""
    if model.total_bytes <= 0:
        return size(model.done_bytes) if model.done_bytes else ""
    share = min(1.0, model.done_bytes / model.total_bytes)
    return f"{size(model.done_bytes)} of {size(model.total_bytes)} · {100 * share:.0f} %"


def starting_lines(live: Live, width: int, seconds: int = 0, question: str = "") -> tuple[Line, ...]:
    """The steps, the running one with its bar; or what went wrong and what to do now.

    Args:
        seconds: since the app was opened; told from the first whole one on.
        question: what was asked meanwhile, and waits.
    """
    since: Line = (Cell(f"{seconds} s", "muted"),) if seconds else ()
    lines: list[Line] = [
        fitted([(0, (Cell("parallax", "accent"),)), (1, since)], width) if since else (Cell("parallax", "accent"),),
        (Cell("one language model over the machines you have", "muted"),),
        (),
    ]
    if live.last_words and not live.connected:
        words = [piece for text in live.last_words.splitlines() for piece in wrapped(safe(text), width)]
        lines += [(Cell("✕ ", "bad"), Cell("the node ended", "strong")), ()]
        lines += [(Cell(line, "muted"),) for line in words[-LAST_WORDS:]]
        return (*lines, (), (Cell("ctrl+q quits; "), Cell("parallax node", "strong"), Cell(" alone shows more")))
    if live.state is None:
        step: Line = (Cell("◐ ", "warn"), Cell("starting node…", "strong"))
        lines += [step, *((Cell("· ", "faint"), Cell(_TITLES[phase], "faint")) for phase in _PHASES[:3])]
        return (*lines, *_waiting(question, width))
    model = live.state.model
    lines.append(
        _step("✓", "good", "start the node") if live.connected else _step("✕", "bad", "node unreachable, retrying")
    )
    reached = _PHASES.index(model.phase) if model.phase in _PHASES else -1
    for index, phase in enumerate(_PHASES[:3]):
        if index < reached:
            lines.append(_step("✓", "good", _TITLES[phase]))
        elif index > reached:
            lines.append((Cell("· ", "faint"), Cell(_TITLES[phase], "faint")))
        else:
            head = (Cell("◐ ", "warn"), Cell(_TITLES[phase], "strong"))
            lines.append(fitted([(0, head), (1, (Cell(progress_text(model), "muted"),))], width))
            if bar := progress_bar(model, min(48, width - 2)):
                lines.append((Cell("  "), *bar))
    return (*lines, (), *_closing(live, model, width), *_waiting(question, width))


def _waiting(question: str, width: int) -> list[Line]:
    if not question:
        return []
    first = safe(question.splitlines()[0])
    return [
        (),
        (Cell("> ", "accent"), Cell(shorten(first, max(0, width - 2)))),
        (Cell("  is answered as soon as the model can", "muted"),),
    ]


def _step(symbol: str, tone: Tone, title: str) -> Line:
    return (Cell(f"{symbol} ", tone), Cell(title))


def _closing(live: Live, model: ModelStatus, width: int) -> list[Line]:
    if model.phase == "failed":
        text = safe(model.text) or "the model could not be made ready"
        lines: list[Line] = [
            (Cell("✕ " if index == 0 else "  ", "bad"), Cell(piece))
            for index, piece in enumerate(wrapped(text, width - 2))
        ]
        return [*lines, (), (Cell("f2 shows the nodes, ctrl+q quits", "muted"),)]
    told = safe(model.text)
    if live.state is not None and live.state.plan_problem:
        told = safe(live.state.plan_problem)
    told = told or safe(live.model) or ("the node measures this machine" if model.phase == "none" else "")
    return [(Cell(piece, "muted"),) for piece in wrapped(told, width)]


def centred(lines: tuple[Line, ...], width: int, block_width: int = 0) -> tuple[Line, ...]:
    """The block moved to the middle as a whole, its lines still flush with one another.

    A `block_width` keeps it in place while its lines grow and shrink.
    """
    shift = max(0, (width - max(block_width, *(width_of(line) for line in lines), 0)) // 2)
    return tuple((Cell(" " * shift), *line) if line else () for line in lines)
