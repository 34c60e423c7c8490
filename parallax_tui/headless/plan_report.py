"""`parallax plan`: who would hold which layers, and what that would achieve.

For the running swarm its node is asked, which knows it best and can also make it so. For described machines, or for
another model than the swarm's, it is worked out here; nothing is downloaded: presets and config.json are all that a
plan needs of a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from node.errors import BadLayers, BadPool, ModelNotFound, NoNode, ParallaxError, UsageError
from node.home import Home
from node.journal.state import State
from node.plan import allocate, predict, read_pool
from node.plan.costs.model import ModelCost, cost_of_config
from node.plan.costs.presets import CONFIGS, preset
from node.plan.live.from_records import pool_of_records
from node.plan.live.propose import resolved
from node.plan.machines.machine_counts import needs_data, needs_of, needs_text
from node.plan.machines.pool import Pool
from node.plan.outlook.report import report_data, report_text
from node.plan.placement.allocate import DEFAULT_WORKLOAD
from node.wire.plans import Aim, Objective, PlanSettings
from parallax_tui.headless.node_connection import read_state
from parallax_tui.headless.plan_changes import PlanChanges, changed_pool
from parallax_tui.headless.plan_control import ask
from parallax_tui.state.cells import safe

POOL_LIMIT_BYTES = 64 * 1024 * 1024
"""A hundred thousand nodes take about 10 MB."""


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """What to plan."""

    pool_file: str | None
    """None: the live pool of this home's node."""
    live: bool
    """The running swarm's machines were asked for by name."""
    model: str | None
    """A preset's name or a folder with config.json; None: the live swarm's model."""
    objective: Aim | None
    """None: the swarm's own; for described machines balanced."""
    changes: PlanChanges
    apply: bool
    """Make it so."""
    as_json: bool


def answer(question: PlanQuestion, home: Home) -> str:
    """The plan and its prediction, as text or JSON.

    Raises:
        DoesNotFit: the pool is too small; says how much memory is missing.
        PlanError: the pool file cannot be taken; names file, key and reason.
        UsageError, ModelError: no such file or model, or options that do not go together.
        NoNode: the live pool was asked for, and no node runs here.
        NodeRefused: it runs, and says why not.
    """
    if question.pool_file is not None:
        return _of_described(question, question.pool_file)
    if question.model is not None:
        try:
            state = read_state(home)
        except NoNode:
            if question.apply or question.changes or question.live:
                raise
            return _of_no_machines(question, question.model)
        if state.plan is None or state.plan.model.name != question.model:
            return _of_other_model(question, question.model, state)
    return ask(home, question.changes, question.objective, apply=question.apply, as_json=question.as_json)


def failure_as_json(error: ParallaxError) -> str:
    """What there is instead of a plan, for programs; `missing_bytes` where memory is short."""
    told: dict[str, object] = {"message": str(error), "code": type(error).__name__}
    missing_bytes = getattr(error, "missing_bytes", None)
    if missing_bytes is not None:
        told["missing_bytes"] = missing_bytes
    return json.dumps({"error": told}, indent=2)


def _of_described(question: PlanQuestion, file: str) -> str:
    if question.apply:
        raise UsageError("--apply is for the running swarm; a plan for a POOL.toml only advises")
    if question.changes.resets:
        raise UsageError(f"--reset is for the running swarm; change {file} instead")
    if question.model is None:
        raise UsageError(f"--model is needed with a pool file; presets: {', '.join(sorted(CONFIGS))}")
    pool = changed_pool(read_pool(_read_text(Path(file)), file), question.changes, file)
    objective = "balanced" if question.objective is None or question.objective == "auto" else question.objective
    try:
        return _report(_model(question.model), pool, objective, (), question.as_json)
    except BadLayers as error:
        if question.changes.pins:
            raise
        raise BadPool(file, "layers", f"{error.layers}: {error.reason}") from error


def _of_other_model(question: PlanQuestion, name: str, state: State) -> str:
    """The swarm's machines with a model that it does not serve."""
    if question.apply or question.changes:
        served = f", which is {state.plan.model.name}" if state.plan is not None else ""
        raise UsageError(f"--model {name} only advises; what is set by hand is for the model that is served{served}")
    settings = state.plan.settings if state.plan is not None else PlanSettings()
    settings = msgspec.structs.replace(settings, objective=question.objective or settings.objective)
    read = pool_of_records((view.record for view in state.nodes.values()), settings)
    # layers set by hand and measured times are those of the served model
    nodes = tuple(replace(node, pinned=None, layer_ms=(), head_ms=None) for node in read.pool.nodes)
    objective = resolved(settings, {view.record.id: view.record for view in state.nodes.values()}, state.plan)
    return _report(_model(name), Pool(nodes, read.pool.links), objective, read.problems, question.as_json)


def _of_no_machines(question: PlanQuestion, name: str) -> str:
    """No machines are described, and none runs: which it would take."""
    model = _model(name)
    needs = needs_of(model, DEFAULT_WORKLOAD)
    if question.as_json:
        return msgspec.json.format(msgspec.json.encode(needs_data(model, needs)), indent=2).decode()
    return "\n".join(safe(line) for line in needs_text(model, needs).splitlines())


def _report(model: ModelCost, pool: Pool, objective: Objective, problems: tuple[str, ...], as_json: bool) -> str:
    plan = allocate(model, pool.nodes, pool.links, objective)
    prediction = predict(plan)
    if as_json:
        data = {**report_data(plan, prediction), "problems": list(problems)}
        return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    lines = [*report_text(plan, prediction).splitlines(), *(f"left out: {problem}" for problem in problems)]
    return "\n".join(safe(line) for line in lines)


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


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > POOL_LIMIT_BYTES:
            raise UsageError(f"{path}: is larger than {POOL_LIMIT_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: {error.reason}") from error
