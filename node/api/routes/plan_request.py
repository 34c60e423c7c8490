"""What a person asks of the plan, as JSON: checked at the door, then laid over the settings that the swarm has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from node.errors import BadRequest, UsageError
from node.notation import MOST_LAYERS, parse_bytes, parse_layers
from node.wire.layer_range import layer_range
from node.wire.plans import MOST_NODES, Aim, Duty, Override, PlanSettings
from node.wire.records import NodeRecord

PLAN_BODY_LIMIT_BYTES = 1024 * 1024
"""A line for each of the most nodes that a plan can have."""

NAMES_SHOWN = 20

T = TypeVar("T")

Called = Annotated[str, Meta(min_length=1, max_length=128)]
"""A node's name or id; of an id the last eight characters do, as they are shown for a node of unknown name."""


class NodeChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What to set by hand for one node. What is not named stays as it is, null takes it back."""

    layers: tuple[int, int] | str | UnsetType | None = UNSET
    """`[A, B]` or `"A:B"`: exactly layers A to B-1."""
    memory_bytes: int | str | UnsetType | None = UNSET
    """At most this much; bytes, or a size such as `"6g"`."""
    duty: Duty | UnsetType | None = UNSET


CHOICES: Mapping[str, tuple[str, ...]] = {
    "duty": get_args(Duty),
    "objective": get_args(Aim),
}
"""What these keys take, beside null."""

_Change = NodeChange | None
"""None takes all of it back."""


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    objective: Aim | UnsetType | None = UNSET
    nodes: Annotated[dict[Called, Raw], Meta(max_length=MOST_NODES)] = {}
    reset: Annotated[tuple[Called, ...], Meta(max_length=MOST_NODES)] = ()
    epoch: Annotated[int, Meta(ge=0, le=2**53)] | None = None


class PlanRequest(Struct, frozen=True):
    """Changes of the settings; none at all asks for the plan as things are."""

    objective: Aim | None
    """None: as it is."""
    nodes: dict[str, NodeChange]
    """By name or id, checked."""
    reset: tuple[str, ...]
    """Take back all that is set by hand for these."""
    epoch: int | None
    """Of the plan that the person has seen: refuse where another one is in force."""

    @property
    def changes_settings(self) -> bool:
        """Whether it asks for anything but the plan as things are."""
        return self.objective is not None or bool(self.nodes) or bool(self.reset)


def parse_plan_request(body: bytes) -> PlanRequest:
    """Check a body; an empty one asks for the plan as things are.

    Raises:
        BadRequest: with the key's name and what is wrong with it.
    """
    asked: _Body = _decoded(body or b"{}", _Body, None)
    nodes = {called: _decoded(bytes(raw), _Change, f"nodes.{called}") for called, raw in asked.nodes.items()}
    checked = {called: _checked(called, change) for called, change in nodes.items() if change is not None}
    reset = (*asked.reset, *(called for called, change in nodes.items() if change is None))
    objective: Aim | None = None
    if not isinstance(asked.objective, UnsetType):
        objective = asked.objective or "auto"
    return PlanRequest(objective, checked, reset, asked.epoch)


def changed_settings(
    request: PlanRequest,
    before: PlanSettings,
    records: Iterable[NodeRecord],
    layers: int,
    names: Mapping[str, str] = MappingProxyType({}),
) -> PlanSettings:
    """The settings after the request: what it resets, then what it sets, all else as before.

    Args:
        request: a checked one.
        before: the settings of the plan in force.
        records: of the live members, by whose names nodes are found.
        layers: of the model.
        names: of nodes that were seen before, by id; a member's own goes before.

    Raises:
        BadRequest: a name that is unknown or shared, layers beyond the model or against their owner's own `--layers`.
    """
    members = {record.node_id: record for record in records}
    overrides = {override.node_id: override for override in before.overrides}
    known = {**names, **{node_id: each.name or names.get(node_id, "") for node_id, each in overrides.items()}}
    known |= {node_id: record.name for node_id, record in members.items()}
    for called in request.reset:
        overrides.pop(_id_of(called, "reset", known), None)
    named: dict[str, str] = {}
    for called, change in request.nodes.items():
        at = f"nodes.{called}"
        node_id = _id_of(called, at, known)
        if node_id in named:
            raise BadRequest(at, f"is the same node as {named[node_id]!r}; name it once")
        named[node_id] = called
        override = _overlaid(overrides.get(node_id, Override(node_id)), change)
        if override.layers is not None:
            _check_layers(override.layers, f"{at}.layers", members.get(node_id), layers)
        overrides[node_id] = msgspec.structs.replace(override, name=known[node_id])
    told = (overrides[node_id] for node_id in sorted(overrides))
    kept = tuple(each for each in told if (each.layers, each.memory_bytes, each.duty) != (None, None, "serve"))
    return PlanSettings(request.objective or before.objective, kept)


def _decoded(body: bytes, kind: Any, at: str | None) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors, as is invalid UTF-8
        what, _, path = str(error).partition(" - at `$")
        key = path.rstrip("`").lstrip(".")
        place = ".".join(part for part in (at, key) if part)
        if choices := CHOICES.get(key):
            what = f"must be one of {', '.join(choices)}"
        raise BadRequest(place or None, what) from error


def _checked(called: str, change: NodeChange) -> NodeChange:
    """The same with layers and memory as numbers that can be."""
    at = f"nodes.{called}"
    layers, memory_bytes = change.layers, change.memory_bytes
    if isinstance(layers, str):
        layers = _read(parse_layers, layers, f"{at}.layers")
    elif isinstance(layers, tuple) and not 0 <= layers[0] < layers[1] <= MOST_LAYERS:
        raise BadRequest(f"{at}.layers", f"{list(layers)} is no range; write [A, B] with 0 <= A < B")
    if isinstance(memory_bytes, str):
        memory_bytes = _read(parse_bytes, memory_bytes, f"{at}.memory_bytes")
    elif isinstance(memory_bytes, int) and not 0 < memory_bytes <= 2**53:
        raise BadRequest(f"{at}.memory_bytes", f"{memory_bytes} is no amount of memory; write bytes or a size like 6g")
    if isinstance(layers, tuple) and change.duty in ("drain", "exclude"):
        raise BadRequest(at, f"layers to hold and the duty {change.duty!r} contradict each other; give one of them")
    return NodeChange(layers, memory_bytes, change.duty)


def _read(parse: Callable[[str, str], T], text: str, at: str) -> T:
    try:
        return parse(text, "")
    except UsageError as error:
        raise BadRequest(at, str(error).strip()) from error


def _id_of(called: str, at: str, known: Mapping[str, str]) -> str:
    """The one node that is meant."""
    if called in known:
        return called
    found = [node_id for node_id, name in known.items() if name == called]
    found = found or [node_id for node_id in known if node_id[-8:] == called]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRequest(at, f"{len(found)} nodes are called {called!r}; use an id: {', '.join(sorted(found))}")
    told = sorted(f"{name} ({node_id})" if name else node_id for node_id, name in known.items())
    more = ["…"] if len(told) > NAMES_SHOWN else []
    raise BadRequest(at, f"no node is called {called!r}; there are {', '.join([*told[:NAMES_SHOWN], *more])}")


def _overlaid(override: Override, change: NodeChange) -> Override:
    layers, memory_bytes = override.layers, override.memory_bytes
    if not isinstance(change.layers, UnsetType):
        assert not isinstance(change.layers, str)
        layers = change.layers
    if not isinstance(change.memory_bytes, UnsetType):
        assert not isinstance(change.memory_bytes, str)
        memory_bytes = change.memory_bytes
    duty = override.duty if isinstance(change.duty, UnsetType) else change.duty or "serve"
    return Override(override.node_id, layers, memory_bytes, duty)


def _check_layers(pinned: tuple[int, int], at: str, record: NodeRecord | None, layers: int) -> None:
    start, end = pinned
    if end > layers:
        raise BadRequest(at, f"layers {layer_range(start, end)} reach beyond the model, which has {layers} layers")
    if record is not None and record.pinned_layers not in (None, pinned):
        own_start, own_end = record.pinned_layers or (0, 0)
        raise BadRequest(
            at, f"{record.name} was started with --layers {own_start}-{own_end - 1}; only its owner can change that"
        )
