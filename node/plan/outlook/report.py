"""A plan and its prediction as text (a table, a layer map, a sentence per standby node) and as data for JSON."""

from __future__ import annotations

from collections.abc import Sequence

from node.plan.outlook.crossover import crossover_text
from node.plan.outlook.figures import figure, milliseconds
from node.plan.outlook.predict import Prediction
from node.plan.placement.allocation import Allocation, Stage
from node.wire.layer_range import layer_range

GIB = 1024**3
MAP_WIDTH = 48
"""Columns of the layer map; fewer where the model has fewer layers."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def report_text(plan: Allocation, prediction: Prediction) -> str:
    """For people, 80 columns wide unless names are long."""
    rows = _rows(plan, prediction)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    names = {node.node_id: node.label for node in plan.pool.nodes}
    standby = [standby.reason for standby in plan.standby]
    return "\n".join(
        [
            f"{plan.model.name}: {plan.layers} layers, {plan.model.total_bytes / GIB:.1f} GiB, for {plan.objective}",
            plan.note,
            *_assumed(plan),
            "",
            *table,
            "",
            *layer_map(plan, names),
            "",
            *_figures(prediction),
            *_splitting(plan, prediction, names),
            *(["", "standby:", *(f"  {reason}" for reason in standby)] if standby else []),
        ]
    )


def _splitting(plan: Allocation, prediction: Prediction, names: dict[str, str]) -> list[str]:
    able = sum(not node.barred for node in plan.pool.nodes)
    told = crossover_text(prediction.splitting, names, able) if plan.pipelines else ""
    return [told] if told else []


def _assumed(plan: Allocation) -> list[str]:
    """What the figures rest on where nobody has given or measured it."""
    work = plan.workload
    lines = [f"figures for prompts of {work.prompt_tokens} and answers of {work.output_tokens} tokens"]
    rates = {
        node.label: (node.bandwidth_bytes_per_s, node.flops_per_s) for node in plan.pool.nodes if not node.layer_ms
    }
    if guessed := [name for name, known in rates.items() if None in known]:
        lines.append(f"speed not given, so that of a slow desktop assumed: {named(guessed)}")
    if len(plan.pool.nodes) > 1 and not plan.pool.links.rtt_ms:
        near, far = milliseconds(plan.pool.links.near_ms), milliseconds(plan.pool.links.far_ms)
        lines.append(f"round trips not given: {near} inside a region and {far} between regions assumed")
    return lines


def named(names: Sequence[str], most: int = 5) -> str:
    """`a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def layer_map(plan: Allocation, names: dict[str, str]) -> list[str]:
    """A line per held range: where it lies among the layers."""
    width = min(MAP_WIDTH, plan.layers)
    longest = max((len(names[stage.node_id]) for stage in plan.stages()), default=0)
    lines = []
    for stage, _ in _with_role(plan):
        left = stage.start * width // plan.layers
        right = max(left + 1, -(-stage.end * width // plan.layers))
        bar = "·" * left + "█" * (right - left) + "·" * (width - right)
        lines.append(f"{names[stage.node_id].ljust(longest)}  {bar}  {layer_range(stage.start, stage.end)}")
    return lines


def report_data(plan: Allocation, prediction: Prediction) -> dict[str, Json]:
    """The same for machines."""
    names = {node.node_id: node.label for node in plan.pool.nodes}
    splitting = prediction.splitting
    return {
        "model": plan.model.name,
        "layers": plan.layers,
        "weight_bytes": plan.model.total_bytes,
        "objective": plan.objective,
        "note": plan.note,
        "score": plan.score,
        "gap": plan.gap,
        "splitting_pays_below_rtt_ms": splitting.rtt_ms if splitting is not None else None,
        "pipelines": [
            {
                "token_ms": pipeline.token_ms,
                "tokens_per_s": pipeline.tokens_per_s,
                "sequences": pipeline.sequences,
                "stages": [_stage_data(stage, names) for stage in pipeline.stages],
            }
            for pipeline in plan.pipelines
        ],
        "replicas": [_stage_data(stage, names) for stage in plan.replicas],
        "standby": [
            {"node": standby.node_id, "name": names.get(standby.node_id, ""), "reason": standby.reason}
            for standby in plan.standby
        ],
        "prediction": {
            "ttft_ms": prediction.ttft_ms,
            "tpot_ms": prediction.tpot_ms,
            "tokens_per_s": prediction.tokens_per_s,
            "users": prediction.users,
            "users_tokens_per_s": prediction.users_tokens_per_s,
            "users_tpot_ms": prediction.users_tpot_ms,
            "bottleneck": prediction.bottleneck,
            "memory": [
                {
                    "node": m.node_id,
                    "name": names[m.node_id],
                    "weights": m.weight_bytes,
                    "kv": m.kv_bytes,
                    "of": m.memory_bytes,
                }
                for m in prediction.memory
            ],
        },
    }


def _stage_data(stage: Stage, names: dict[str, str]) -> dict[str, Json]:
    return {"node": stage.node_id, "name": names[stage.node_id], "start": stage.start, "end": stage.end}


def _with_role(plan: Allocation) -> list[tuple[Stage, str]]:
    stages = [
        (stage, f"pipeline {i}") for i, pipeline in enumerate(plan.pipelines, start=1) for stage in pipeline.stages
    ]
    return stages + [(stage, "replica") for stage in plan.replicas]


def _rows(plan: Allocation, prediction: Prediction) -> list[Sequence[str]]:
    by_id = {node.node_id: node for node in plan.pool.nodes}
    memory = {m.node_id: m for m in prediction.memory}
    shares = {share.what: share.milliseconds for share in prediction.parts}
    rows: list[Sequence[str]] = [("node", "role", "layers", "weights", "cache", "of", "step")]
    runs = {s.node_id: n for p in plan.pipelines for s, n in zip(p.stages, p.ran, strict=True)}
    for stage, role in _with_role(plan):
        used = memory[stage.node_id]
        part = f" ({runs[stage.node_id]} run)" if runs.get(stage.node_id, stage.layers) != stage.layers else ""
        rows.append(
            (
                by_id[stage.node_id].label,
                role,
                f"{layer_range(stage.start, stage.end)}{part}",
                f"{used.weight_bytes / GIB:.1f} GiB",
                f"{used.kv_bytes / GIB:.2f} GiB",
                f"{used.memory_bytes / GIB:.1f} GiB",
                milliseconds(shares[stage.node_id]) if stage.node_id in shares else "",
            )
        )
    return rows


def _figures(prediction: Prediction) -> list[str]:
    if prediction.tokens_per_s == 0:
        return [prediction.bottleneck]
    lines = [
        f"one user: first token after {milliseconds(prediction.ttft_ms)}, "
        f"then {figure(prediction.tokens_per_s)} tokens/s ({milliseconds(prediction.tpot_ms)} each)"
    ]
    if prediction.users > 1:
        lines.append(f"{prediction.users} users: {figure(prediction.users_tokens_per_s)} tokens/s together")
    return [*lines, prediction.bottleneck]
