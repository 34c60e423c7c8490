"""How much of a range is loaded, as an event for people: layers and bytes."""

from __future__ import annotations

from collections.abc import Callable

from node.engine.base import GoesOn
from node.wire.events import ModelProgress
from node.wire.layer_range import layer_range
from node.wire.plans import Plan


def load_progress(plan: Plan, start: int, end: int, emit: Callable[[ModelProgress], object]) -> GoesOn:
    """What a load of layers [start, end) of a plan's model tells: `12 of 30 layers`."""
    layers = end - start
    total_bytes = layers * plan.facts.layer_bytes
    where = f", {layer_range(start, end)}" if layers < plan.facts.layers else ""

    def goes_on(share: float) -> None:
        text = f"{int(share * layers)} of {layers} layers{where}"
        emit(ModelProgress(plan.model.name, "load", int(share * total_bytes), total_bytes, text))

    return goes_on
