"""The machines and the model that the scheduling tests share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from node.plan.costs.model import ModelCost, cost_of_config
from node.plan.machines.pool import Links, PoolNode

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


def unequal(n: int, seed: int, memory_gib: tuple[float, float] = (4, 96)) -> tuple[list[PoolNode], Links]:
    """n machines no two of which are alike, as live ones are: measured bandwidths of 1e10 to 2e12 bytes per second,
    memory of 4 to 96 GiB, and a link of its own between every two, 0.2 to 200 ms."""
    chance = random.Random(seed)
    nodes = [
        PoolNode(
            f"n{i:03}",
            int(between(chance, *memory_gib) * GIB),
            between(chance, 1e10, 2e12),
            between(chance, 1e12, 3e14),
            overhead_ms=chance.uniform(0.1, 0.6),
        )
        for i in range(n)
    ]
    pairs = combinations([node.node_id for node in nodes], 2)
    rtt_ms = {pair: between(chance, 0.2, 200.0) for pair in pairs}
    return nodes, Links(rtt_ms, {pair: between(chance, 10.0, 10_000.0) for pair in rtt_ms})


def between(chance: random.Random, low: float, high: float) -> float:
    """Log-uniform: as often between 1 and 10 as between 10 and 100."""
    return float(low * (high / low) ** chance.random())


def jittered(nodes: Sequence[PoolNode], seed: int, part: float = 0.2) -> list[PoolNode]:
    """The same machines as they would measure themselves: rates and memory differ by up to `part`."""
    chance = random.Random(seed)

    def about(value: float) -> float:
        return value * chance.uniform(1 - part, 1 + part)

    return [
        replace(
            node,
            memory_bytes=int(about(node.memory_bytes)),
            bandwidth_bytes_per_s=about(node.bandwidth),
            flops_per_s=about(node.flops),
        )
        for node in nodes
    ]


def useless(name: str = "useless") -> PoolNode:
    """A machine with no room for a layer of anything."""
    return PoolNode(name, 1024 * 1024, 1e11, 1e13)
