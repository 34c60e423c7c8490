"""Runs a stage's sequences packed: the rows of a whole batch through each layer at once, keys and values in pages."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from node.engine.torch.packed_attention import NAME, Packed, Span, computing, register
from node.engine.torch.pages import PAGE_TOKENS, Pages, PageTable
from node.engine.torch.slice import TorchSlice

CHECK_ROWS = (5, 9)
"""Of two sequences; of each the last ones are steps."""
CHECK_STEPS = 2
MOST_OFF = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Mean difference to the library's own attention, as a part of the numbers' mean size, beyond which a family is held
not to compute the same when packed. Rounding alone makes less than a tenth of it."""


@dataclass(slots=True, eq=False)
class PackedSequence:
    """Where one sequence's keys and values are."""

    pages: Pages
    table: PageTable

    def reserve(self, tokens: int) -> bool:
        """Have pages for so many tokens; False where the device has no memory for them."""
        return self.pages.reserve(self.table, tokens)

    def keep(self, tokens: int) -> None:
        """Forget what is beyond so many tokens."""
        self.pages.keep(self.table, tokens)


def rounded(tokens: int) -> int:
    """The room that so many tokens take."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


class Packing:
    """The pages of a stage, range by range."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pages: dict[tuple[int, int], Pages] = {}

    def new(self, part: TorchSlice) -> PackedSequence:
        """An empty sequence through the layers of a slice."""
        prepare(part)
        pages = self._pages.setdefault((part.start, part.end), Pages(self._device))
        return PackedSequence(pages, PageTable())


def prepare(part: TorchSlice) -> None:
    """Have a slice compute packed rows from now on."""
    register()
    part.set_attention(NAME)


@torch.inference_mode()
def forward(
    part: TorchSlice, rows: torch.Tensor, spans: list[Span], pages: Pages, wanted: list[int] | None
) -> torch.Tensor:
    """Ids (T,) or hidden states (T, hidden_size) of these spans to hidden states (T, hidden_size), or to the logits of
    the `wanted` rows, (wanted, vocab_size)."""
    packed = Packed(spans, pages)
    inputs: dict[str, Any] = {
        "input_ids" if part.first else "inputs_embeds": rows[None],
        "position_ids": packed.positions[None],
        "use_cache": False,
    }
    with computing(packed):
        if wanted is not None:
            keep = torch.tensor(wanted, dtype=torch.int64, device=part.device)
            out: torch.Tensor = part.model(**inputs, logits_to_keep=keep).logits
        else:
            out = part.model.model(**inputs).last_hidden_state
    return out[0]


def check(part: TorchSlice) -> Generator[None, None, str]:
    """Why a family cannot be computed packed; empty where it gives what the library's own attention gives.

    Two sequences of unlike lengths are run, prompts and steps, the one packed with the other and each alone.
    """
    generator = torch.Generator().manual_seed(1)
    sources = [_rows(part, count, generator) for count in CHECK_ROWS]
    expected = [part.forward(rows, part.new_cache(), 0) for rows in sources]
    yield
    prepare(part)
    pages, tables = Pages(part.device), [PageTable() for _ in sources]
    given: list[list[torch.Tensor]] = [[] for _ in sources]
    prompts = [count - CHECK_STEPS for count in CHECK_ROWS]
    try:
        for step in range(1 + CHECK_STEPS):
            spans, begin = [], 0
            for table, prompt in zip(tables, prompts, strict=True):
                place, count = (prompt + step - 1, 1) if step else (0, prompt)
                pages.reserve(table, place + count)
                spans.append(Span(table, place, count, begin))
                begin += count
            rows = torch.cat([rows[span.position : span.length] for rows, span in zip(sources, spans, strict=True)])
            out = forward(part, rows, spans, pages, None)
            for found, span in zip(given, spans, strict=True):
                found.append(out[span.begin : span.begin + span.count])
            yield
    except Exception as error:  # a family whose code counts on a cache, or on attention of its own
        part.set_attention(part.own_attention)
        return f"{type(error).__name__}: {error}"
    for found, own in zip(given, expected, strict=True):
        off, size = (torch.cat(found) - own).float().abs().mean(), own.float().abs().mean()
        if not float(off) <= MOST_OFF[part.dtype] * float(size):
            part.set_attention(part.own_attention)
            return f"its rows differ by {float(off / size):.1%} from those of the library's own attention"
    return ""


def _rows(part: TorchSlice, count: int, generator: torch.Generator) -> torch.Tensor:
    if part.first:
        return torch.randint(0, part.vocabulary, (count,), generator=generator).to(part.device)
    return torch.randn(count, part.width, generator=generator).to(part.device, part.dtype)
