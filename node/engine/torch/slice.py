"""Layers [start, end) as one model of transformers' own classes: rows in, rows or logits out. No sequences, no room."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import DynamicCache


class TorchSlice:
    """A model of these layers. Its parameters may be those of other slices too."""

    def __init__(self, model: Any, start: int, end: int, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model
        self.start, self.end = start, end
        self.first = model.model.embed_tokens is not None
        """Takes token ids, not hidden states."""
        self.last = model.lm_head is not None
        """Gives logits, not hidden states."""
        self.width = int(model.config.hidden_size)
        self.device, self.dtype = device, dtype
        self.own_attention = str(model.config._attn_implementation)
        """That the library chose."""
        self.head_begun_s = 0.0
        """When the LM head's last run began, by `time.perf_counter`."""
        if self.last:
            model.lm_head.register_forward_pre_hook(self._begin_head)

    @property
    def layers(self) -> int:
        return self.end - self.start

    @property
    def vocabulary(self) -> int:
        """Ids that the embedding knows; 0 where there is none."""
        return int(self.model.model.embed_tokens.weight.shape[0]) if self.first else 0

    def set_attention(self, name: str) -> None:
        """Have all layers ask for attention by this name."""
        for config in {id(part.config): part.config for part in (self.model, self.model.model)}.values():
            config._attn_implementation = name

    def new_cache(self) -> DynamicCache:
        """Empty keys and values for these layers, sliding ones with their window."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def blank_row(self) -> torch.Tensor:
        """One position's input: id 0 or a hidden state of zeros."""
        if self.first:
            return torch.zeros(1, dtype=torch.int64, device=self.device)
        return torch.zeros(1, self.width, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, rows: torch.Tensor, cache: DynamicCache, position: int, *, logits: int = 0) -> torch.Tensor:
        """Ids (T,) or hidden states (T, hidden_size) to hidden states (T, hidden_size), or with `logits` to those of
        the last so many rows, (logits, vocab_size)."""
        count = rows.shape[0]
        inputs: dict[str, Any] = {
            "input_ids" if self.first else "inputs_embeds": rows[None],
            "position_ids": torch.arange(position, position + count, device=self.device)[None],
            "past_key_values": cache,
            "use_cache": True,
        }
        if logits:
            out: torch.Tensor = self.model(**inputs, logits_to_keep=logits).logits
            return out[0]
        states: torch.Tensor = self.model.model(**inputs).last_hidden_state
        return states[0]

    def synchronise(self) -> None:
        """Wait for the device, so that a time is that of the work, not of queueing it."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def _begin_head(self, *_: object) -> None:
        self.synchronise()
        self.head_begun_s = time.perf_counter()


def can_forget(cache: DynamicCache) -> bool:
    """Whether every layer keeps all of its keys and values, and nothing else."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def copied(cache: DynamicCache, tokens: int) -> DynamicCache:
    """A cache of its own with the first tokens of another one. Only where `can_forget`."""
    again = copy.deepcopy(cache)
    forget(again, tokens)
    return again


def forget(cache: DynamicCache, position: int) -> None:
    """Drop keys and values at `position` and after it, whatever each layer holds. Only where `can_forget`."""
    for layer in cache.layers:
        layer.crop(min(0, position - int(layer.get_seq_length())))
