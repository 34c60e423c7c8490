"""What a reader of weights gives, whatever the files are. Knows names and numbers, no graph and no torch.

Roles have one set of names, GGUF's short ones, for every family and form of file:

    layer None   token_embd, output_norm, output, rope_freqs
    attention    attn_norm, attn_q, attn_k, attn_v, attn_output, attn_q_norm, attn_k_norm, attn_sinks,
                 post_attention_norm
    latent       attn_q_a, attn_q_a_norm, attn_q_b, attn_kv_a_mqa, attn_kv_a_norm, attn_kv_b
    feed forward ffn_norm, ffn_gate, ffn_up, ffn_down, post_ffw_norm
    experts      ffn_gate_inp, exp_probs_b, ffn_gate_exps, ffn_up_exps, ffn_down_exps (experts, rows, columns),
                 ffn_gate_shexp, ffn_up_shexp, ffn_down_shexp
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from node.weights.blocks import Floats, Matrix

Part = Literal["weight", "bias"]


class Weights(Protocol):
    """A model's weights where they lie. Everything but the names is read when it is asked for.

    Raises, in each method that reads:
        DamagedModel: a file is missing or cut short, or a tensor has another shape than the model's sizes say.
        UnsupportedModel: a tensor is stored in a way that is not known here.
        KeyError: there is no such tensor; see `has`.
    """

    family: str
    """transformers' `model_type`: `llama`, `qwen3`, `gpt_oss`."""
    layers: int
    tied_head: bool
    """Whether the head is the embedding."""
    rotary_interleaved: bool
    """Whether rotation turns neighbouring rows of queries and keys, not rows half a head apart."""
    files: tuple[Path, ...]

    def has(self, layer: int | None, role: str, part: Part = "weight") -> bool:
        """Whether there is such a tensor. Looks at names alone."""

    def matrix(self, layer: int | None, role: str, part: Part = "weight") -> Matrix:
        """A tensor as the file has it: (rows, columns), (experts, rows, columns) or (items,). `output` where the head
        is tied is the embedding. Views of the mapped file where its form is numpy's own."""

    def vector(self, layer: int | None, role: str, part: Part = "weight") -> Floats:
        """A norm's factors or a bias, float32 (items,). Of families that store a norm's distance from 1, the factor."""

    def stored(self, layer: int | None, role: str) -> str:
        """What the numbers are stored as: `F32`, `F16`, `BF16`, `Q4_K`, `gptq-4` …"""

    def file_of(self, layer: int | None, role: str, part: Part = "weight") -> Path:
        """The file that a tensor is in, or the first part of it."""

    def embedding_rows(self, ids: Sequence[int] | NDArray[np.integer]) -> Floats:
        """Rows of the embedding, float32 (ids, hidden): a look-up in the mapped file.

        Raises:
            ValueError: an id is none of the vocabulary's.
        """

    def layer_bytes(self, layer: int) -> int:
        """Of one layer's tensors, as they are stored."""

    def outer_bytes(self, role: str) -> int:
        """Of one tensor beside the layers; 0 where there is none."""
