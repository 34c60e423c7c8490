"""What an empty chat says: which model answers, on what, and how to begin."""

from __future__ import annotations

from parallax_tui.state.cells import Cell, Line, safe
from parallax_tui.state.figures import count
from parallax_tui.state.layers import gap_sentences
from parallax_tui.state.live import Live
from parallax_tui.state.starting import centred

EMBEDDED = "default"
"""Source of the model that comes along; `node.models.default_model`, which is not for this side to load."""
SMALL = (
    "this model comes along and is very small (135 million weights):",
    "good for trying things out, not for facts; for a better one:",
    "parallax --model org/name   (a Hugging Face id, or a GGUF file)",
)


def welcome(live: Live, width: int) -> tuple[Line, ...]:
    """A few lines in the middle of the empty chat."""
    lines: list[Line] = [(Cell("parallax", "accent"),)]
    if live.state is None:
        return centred((*lines, (Cell("no node answers yet", "muted"),)), width)
    model = safe(live.model)
    nodes = count(len(live.state.nodes), "machine", "machines") if live.state.nodes else "this machine"
    lines += [(Cell(model or "no model yet", "strong"), Cell(f" on {nodes}", "muted")), ()]
    lines += [(Cell("! ", "warn"), Cell(sentence)) for sentence in gap_sentences(live)]
    lines += [(Cell("ask anything below", "muted"),)]
    if live.state.plan is not None and live.state.plan.model.source == EMBEDDED:
        lines += [(), *((Cell(words, "muted"),) for words in SMALL)]
    return centred(tuple(lines), width)
