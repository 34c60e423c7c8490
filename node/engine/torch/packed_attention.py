"""Attention over packed rows: those of several sequences, one after another, each against its own keys and values.

transformers' modelling code asks for attention by name. Under ours, all that a model does row by row (projections,
norms, experts) is done for the rows of every sequence together, and attention alone knows whose row is whose.
Decode steps of sequences of about one length are one call, each chunk of a prompt is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from node.engine.torch.pages import Pages, PageTable

NAME = "parallax_packed"
PADDED_TWICE = 2
"""Decode steps share a call where the longest sequence is at most so many times as long as the shortest."""
LEAST_TOKENS = 128
"""Shorter ones count as this long."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's rows among the packed ones."""

    table: PageTable
    position: int
    """Of its first row in its sequence."""
    count: int
    begin: int
    """Of its first row among the packed ones."""

    @property
    def length(self) -> int:
        """Tokens of its sequence, these rows included."""
        return self.position + self.count


class Together:
    """Spans of equally many rows whose attention is one call."""

    def __init__(self, spans: Sequence[Span], pages: Pages) -> None:
        device = pages.device
        longest = max(span.length for span in spans)
        places = torch.zeros(len(spans), longest, dtype=torch.int64)
        for index, span in enumerate(spans):
            places[index, : span.length] = pages.places(span.table, 0, span.length)
        count = spans[0].count
        steps = torch.arange(count)
        self.places = places.to(device)
        """(B, longest)"""
        self.rows = torch.stack([span.begin + steps for span in spans]).to(device)
        """(B, T)"""
        self._positions = torch.stack([span.position + steps for span in spans]).to(device)
        self._keys = torch.arange(longest, device=device)
        self._masks: dict[int | None, torch.Tensor] = {}

    def mask(self, window: int | None) -> torch.Tensor:
        """Which keys each row sees, bool (B, 1, T, longest)."""
        if window not in self._masks:
            behind = self._positions[:, :, None] - self._keys
            seen = behind >= 0
            if window is not None:
                seen &= behind < window
            self._masks[window] = seen[:, None]
        return self._masks[window]


class Packed:
    """The rows of one forward pass."""

    def __init__(self, spans: Sequence[Span], pages: Pages) -> None:
        self.pages = pages
        self.rows = sum(span.count for span in spans)
        self.positions = torch.cat([torch.arange(span.position, span.length) for span in spans]).to(pages.device)
        self.places = torch.cat([pages.places(span.table, span.position, span.length) for span in spans]).to(
            pages.device
        )
        self.calls = [Together(group, pages) for group in in_groups(spans)]


def in_groups(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Spans whose attention is one call: single rows of sequences of about one length; of the others each alone."""
    group: list[Span] = []
    for span in sorted((span for span in spans if span.count == 1), key=lambda span: span.length):
        if group and span.length > PADDED_TWICE * max(LEAST_TOKENS, group[0].length):
            yield group
            group = []
        group.append(span)
    if group:
        yield group
    yield from ([span] for span in spans if span.count > 1)


_now: list[Packed] = []
"""What is being computed: a worker has one thread for that, and modelling code passes nothing of ours on."""


@contextmanager
def computing(packed: Packed) -> Iterator[None]:
    """Within this, a model under `NAME` computes these rows."""
    _now.append(packed)
    try:
        yield
    finally:
        _now.pop()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention of transformers: query (1, heads, rows, width), key and value of these rows alone; gives (1, rows,
    heads, width)."""
    packed, layer = _now[-1], int(module.layer_idx)  # type: ignore[arg-type]
    packed.pages.write(layer, packed.places, key[0].transpose(0, 1), value[0].transpose(0, 1))
    heads, width = query.shape[1], value.shape[-1]
    out = torch.empty(packed.rows, heads, width, dtype=query.dtype, device=query.device)
    for call in packed.calls:
        asked = query[0][:, call.rows].permute(1, 0, 2, 3)  # (B, heads, T, width)
        keys, values = packed.pages.read(layer, call.places)
        mask = call.mask(sliding_window)
        given = _attention(asked, keys.transpose(1, 2), values.transpose(1, 2), mask, scaling, softcap, s_aux)
        out[call.rows] = given.transpose(1, 2)
    return out[None], None


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    if softcap is None and sinks is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
        )
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        own = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1).to(scores.dtype)
        scores = torch.cat([scores, own], -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    return (weights[..., : key.shape[-2]]) @ value


def register() -> None:
    """Make the name known to transformers. Harmless when repeated."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
