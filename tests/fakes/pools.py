"""The machines and the model that the scheduling tests share."""

from __future__ import annotations

from collections.abc import Sequence

from node.plan.costs.model import ModelCost, cost_of_config
from node.plan.machines.pool import PoolNode

GIB = 1024**3
KINDS = {"A": (80, 2039, 312.0), "B": (40, 1935, 312.0), "C": (32, 1792, 165.0), "D": (24, 1008, 82.6)}
"""GB, GB/s and TFLOPS of two servers' and two desktops' GPUs."""
PARAM_SHARE = 0.5
"""Of the memory, for weights."""
CONFIG: dict[str, object] = {
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 201088,
    "num_experts": 128,
    "num_experts_per_tok": 4,
}


def mixture(layers: int) -> ModelCost:
    """A model like gpt-oss: one byte per weight, two per cached number and embedding entry."""
    return cost_of_config("mixture", {**CONFIG, "num_hidden_layers": layers}, weight_bytes=1)


def small_model(layers: int, layer_mib: int = 64, vocab: int = 32_000) -> ModelCost:
    """A dense model whose layers take `layer_mib` MiB."""
    params = layer_mib * 1024 * 1024 // 2
    return ModelCost(
        name="small",
        layers=layers,
        hidden_size=1024,
        vocab_size=vocab,
        context_tokens=4096,
        attention_params=0,
        score_width=2048,
        kv_width=512,
        dense_params=params,
        dense_layers=layers,
    )


def machine(number: int, kind: str, region: str = "") -> PoolNode:
    """One of the four kinds."""
    gigabytes, gigabytes_per_s, tflops = KINDS[kind]
    return PoolNode(
        f"n{number:04}{kind}",
        int(gigabytes * GIB * PARAM_SHARE),
        gigabytes_per_s * 1e9,
        tflops * 1e12,
        region,
    )


def machines(kinds: str, regions: Sequence[str] = ("",)) -> list[PoolNode]:
    """`machines("AABD")`: one for each letter."""
    return [machine(i, kind, regions[i % len(regions)]) for i, kind in enumerate(kinds)]
