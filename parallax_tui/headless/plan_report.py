"""`parallax plan`: who would hold which layers, and what that would achieve, for a described pool or the live one.

Nothing is changed by it, and nothing is downloaded: presets and config.json are all that a plan needs of a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from node.errors import ModelNotFound, UsageError
from node.home import Home
from node.journal.state import State
from node.plan import allocate, predict, read_pool
from node.plan.model_cost import ModelCost, cost_of_config, cost_of_facts
from node.plan.pool import Pool
from node.plan.presets import CONFIGS, preset
from node.plan.records import pool_of_records
from node.plan.report import report_data, report_text
from parallax_tui.headless.node_connection import read_state

POOL_LIMIT_BYTES = 64 * 1024 * 1024
"""A hundred thousand nodes take about 10 MB."""

ITEM_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}

Objective = Literal["latency", "throughput", "balanced"]


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """What to plan."""

    pool_file: str | None
    """None: the live pool of this home's node."""
    model: str | None
    """A preset's name or a folder with config.json; None: the live swarm's model."""
    objective: Objective
    as_json: bool


def answer(question: PlanQuestion, home: Home) -> str:
    """The plan and its prediction, as text or JSON.

    Raises:
        DoesNotFit: the pool is too small; says how much memory is missing.
        PlanError: the pool file cannot be taken; names file, key and reason.
        UsageError, ModelError: no such file or model.
        NoNode: the live pool was asked for, and no node runs here.
    """
    problems: tuple[str, ...] = ()
    if question.pool_file is not None:
        pool = read_pool(_read_text(Path(question.pool_file)), question.pool_file)
        if question.model is None:
            raise UsageError(f"--model is needed with a pool file; presets: {', '.join(sorted(CONFIGS))}")
        model = _model(question.model)
    else:
        state = read_state(home)
        read = pool_of_records(view.record for view in state.nodes.values())
        pool, problems = read.pool, read.problems
        model = _model(question.model) if question.model is not None else _live_model(state)
    return _report(model, pool, question, problems)


def _report(model: ModelCost, pool: Pool, question: PlanQuestion, problems: tuple[str, ...]) -> str:
    plan = allocate(model, pool.nodes, pool.links, question.objective)
    prediction = predict(plan)
    if question.as_json:
        data = {**report_data(plan, prediction), "problems": list(problems)}
        return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    return "\n".join([report_text(plan, prediction), *(f"left out: {problem}" for problem in problems)])


def _model(name: str) -> ModelCost:
    if (known := preset(name)) is not None:
        return known
    config = Path(name) / "config.json"
    if not config.is_file():
        raise ModelNotFound(name, f"name a folder with config.json or one of the presets: {', '.join(sorted(CONFIGS))}")
    try:
        fields = json.loads(_read_text(config))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{config}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{config}: is not a JSON object")
    return cost_of_config(Path(name).name, fields, str(config))


def _live_model(state: State) -> ModelCost:
    if state.plan is None:
        raise UsageError("the swarm has no model yet; name one with --model")
    return cost_of_facts(state.plan.model.name, state.plan.facts, ITEM_BYTES[state.plan.dtype])


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > POOL_LIMIT_BYTES:
            raise UsageError(f"{path}: is larger than {POOL_LIMIT_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: {error.reason}") from error
