"""Which machines a model needs: how many equal ones of each usual size hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import capacity_of
from node.plan.machines.missing_memory import ends_that_fit
from node.plan.machines.pool import Workload

GIB = 1024**3
USUAL_GIB = (8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 512, 1024)
"""Memory of graphics cards, laptops and servers."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model asks of a pool."""

    weight_bytes: int
    kv_bytes: int
    """KV cache of one conversation."""
    context_tokens: int
    """Its length."""
    machines: tuple[tuple[int, int], ...]
    """(bytes for the model in each, how many such machines), as far as one layer fits into one."""


def needs_of(model: ModelCost, workload: Workload, sizes_gib: Sequence[int] = USUAL_GIB) -> Needs:
    """Weights, cache, and the fewest machines of each size; of sizes that need equally many, the smallest."""
    context = min(workload.context, model.context_tokens)
    found: list[tuple[int, int]] = []
    for gib in sorted(sizes_gib):
        one = capacity_of(model, gib * GIB, context)
        fewest = next((n for n in range(1, model.layers + 1) if ends_that_fit([one] * n, model.layers)), None)
        if fewest is not None and (not found or fewest < found[-1][1]):
            found.append((gib * GIB, fewest))
    return Needs(model.total_bytes, model.layers * model.kv_layer_bytes(context), context, tuple(found))


def needs_text(model: ModelCost, needs: Needs) -> str:
    """For people."""
    lines = [
        f"{model.name}: {model.layers} layers, {needs.weight_bytes / GIB:.1f} GiB of weights, and "
        f"{needs.kv_bytes / GIB:.2f} GiB of KV cache for a conversation of {needs.context_tokens} tokens",
        "",
    ]
    if not needs.machines:
        return "\n".join([*lines, "no usual machine holds even one of its layers"])
    rows = [("memory for the model, each", "machines"), *((f"{b // GIB} GiB", str(n)) for b, n in needs.machines)]
    width = max(len(size) for size, _ in rows)
    lines += [f"{size:<{width}}  {count}" for size, count in rows]
    lines += ["", "a node uses 70 % of its machine's memory unless told otherwise (`--memory`)"]
    return "\n".join([*lines, "for unequal machines and the speed: `parallax plan POOL.toml --model …`"])


def needs_data(model: ModelCost, needs: Needs) -> dict[str, object]:
    """For programs."""
    return {
        "model": model.name,
        "layers": model.layers,
        "weight_bytes": needs.weight_bytes,
        "kv_bytes": needs.kv_bytes,
        "context_tokens": needs.context_tokens,
        "machines": [{"memory_bytes": size, "count": count} for size, count in needs.machines],
    }
