"""One forward pass of a range: rows of several sequences in, rows or logits out. Knows SGLang's batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from node.engine.sglang.range_runner import RangeRunner


@dataclass(slots=True, eq=False)
class Held:
    """Where one sequence's keys and values are."""

    row: int
    """Of the library's table of sequences."""
    places: torch.Tensor
    """Of its tokens in the library's cache, int64 (tokens,)."""


class Room:
    """The library's table of sequences and its cache, as we hand them out."""

    def __init__(self, range_runner: RangeRunner) -> None:
        runner = range_runner.runner
        self._table, self._allocator = runner.req_to_token_pool, runner.token_to_kv_pool_allocator

    def new(self) -> Held | None:
        """A sequence without tokens; None where the table is full."""
        rows = self._table.alloc_rows(1)
        return None if rows is None else Held(int(rows[0]), torch.empty(0, dtype=torch.int64))

    def grow(self, held: Held, tokens: int) -> bool:
        """Have places for so many tokens; False, and nothing is taken, where there are none."""
        more = tokens - held.places.shape[0]
        if more <= 0:
            return True
        places = self._allocator.alloc(more)
        if places is None:
            return False
        start = held.places.shape[0]
        table = self._table.req_to_token
        table[held.row, start:tokens] = places.to(table.device, table.dtype)
        held.places = torch.cat([held.places.to(places.device), places.to(torch.int64)])
        return True

    def keep(self, held: Held, tokens: int) -> None:
        """Give back the places after so many tokens."""
        if held.places.shape[0] > tokens:
            self._allocator.free(held.places[tokens:])
            held.places = held.places[:tokens]

    def end(self, held: Held) -> None:
        """Give all back."""
        self.keep(held, 0)
        self._table.free_rows([held.row])


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's rows of a pass."""

    held: Held
    position: int
    count: int


@torch.no_grad()
def forward(range_runner: RangeRunner, parts: Sequence[Part], rows: torch.Tensor, *, decode: bool) -> torch.Tensor:
    """Ids (T,) or hidden states (T, hidden_size) of these parts to hidden states (T, hidden_size), or at the model's
    end to the logits of each part's last row (parts, vocab_size). `decode`: each part has one row."""
    from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

    batch = batch_of(range_runner, parts, rows, decode=decode)
    given = None
    if not range_runner.first:
        # a layer adds both, and keeps the sum: what another stage's last layer gave, added up already
        given = PPProxyTensors({"hidden_states": rows, "residual": torch.zeros_like(rows)})
    out = range_runner.runner.forward(batch, pp_proxy_tensors=given).logits_output
    if range_runner.last:
        logits: torch.Tensor = out.next_token_logits
        return logits
    states: torch.Tensor = out["hidden_states"]
    residual = out.tensors.get("residual")
    return states if residual is None else states + residual


def batch_of(range_runner: RangeRunner, parts: Sequence[Part], rows: torch.Tensor, *, decode: bool) -> Any:
    """The library's batch."""
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode

    runner, device = range_runner.runner, range_runner.device
    lengths = torch.tensor([part.position + part.count for part in parts])
    positions = torch.cat([torch.arange(part.position, part.position + part.count) for part in parts])
    places = torch.cat([part.held.places[part.position : part.position + part.count] for part in parts])
    ids = rows if range_runner.first else torch.zeros(rows.shape[0], dtype=torch.int64)
    batch = ForwardBatch(
        forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
        batch_size=len(parts),
        input_ids=ids.to(device),
        req_pool_indices=torch.tensor([part.held.row for part in parts], device=device),
        seq_lens=lengths.to(device),
        out_cache_loc=places.to(device),
        seq_lens_sum=int(lengths.sum()),
        seq_lens_cpu=lengths,
        positions=positions.to(device),
    )
    if not decode:
        counts = [part.count for part in parts]
        begins = [sum(counts[:index]) for index in range(len(counts))]
        before = [part.position for part in parts]
        batch.extend_num_tokens = sum(counts)
        batch.extend_seq_lens = torch.tensor(counts, device=device)
        batch.extend_prefix_lens = torch.tensor(before, device=device)
        batch.extend_start_loc = torch.tensor(begins, device=device)
        batch.extend_seq_lens_cpu, batch.extend_prefix_lens_cpu = counts, before
        batch.extend_logprob_start_lens_cpu = [0] * len(counts)
    batch.req_to_token_pool, batch.token_to_kv_pool = runner.req_to_token_pool, runner.token_to_kv_pool
    batch.attn_backend = runner.attn_backend
    batch.capture_hidden_mode = CaptureHiddenMode.NULL
    return batch
