"""What `parallax plan` is asked to set by hand, as options say it: for a running swarm, or for described machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from node.errors import UsageError
from node.notation import parse_bytes, parse_layers
from node.plan.machines.pool import DRAINS, Pool

MOST_CHARACTERS = 128
"""Of a name or an id."""


@dataclass(frozen=True, slots=True)
class PlanChanges:
    """By a node's name or id."""

    pins: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Exactly layers [start, end)."""
    caps: Mapping[str, int] = field(default_factory=dict)
    """At most so many bytes."""
    drains: frozenset[str] = frozenset()
    excludes: frozenset[str] = frozenset()
    resets: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.pins or self.caps or self.drains or self.excludes or self.resets)

    def nodes(self) -> list[str]:
        """All that something is set for, in order."""
        return sorted({*self.pins, *self.caps, *self.drains, *self.excludes})


def read_changes(
    pins: Iterable[str], caps: Iterable[str], drains: Iterable[str], excludes: Iterable[str], resets: Iterable[str]
) -> PlanChanges:
    """Options as they were given: `NAME=A-B`, `NAME=6g`, and names.

    Raises:
        UsageError: one that cannot be, or two that contradict each other; names option and node.
    """
    drained, excluded = frozenset(drains), frozenset(excludes)
    for name in sorted(drained & excluded):
        raise UsageError(f"--drain {name} and --exclude {name} contradict each other; give one of them")
    changes = PlanChanges(
        {name: parse_layers(text, f"--pin {name}:") for name, text in _by_name(pins, "--pin", "0-14")},
        {name: parse_bytes(text, f"--cap {name}:") for name, text in _by_name(caps, "--cap", "6g")},
        drained,
        excluded,
        frozenset(resets),
    )
    for option, names in (("--drain", drained), ("--exclude", excluded)):
        for name in sorted(names & changes.pins.keys()):
            raise UsageError(f"--pin {name} and {option} {name} contradict each other; give one of them")
    for name in (*changes.nodes(), *changes.resets):
        if not name.isprintable() or not 0 < len(name) <= MOST_CHARACTERS:
            raise UsageError(f"{name[:MOST_CHARACTERS]!r} is no node's name or id; see `parallax status`")
    return changes


def _by_name(given: Iterable[str], option: str, example: str) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = text.rpartition("=")  # a name may hold the sign, a range or a size cannot
        if not sign or not name:
            raise UsageError(f"{option} {text!r}: write NAME=VALUE, such as {option} attic={example}")
        if name in found:
            raise UsageError(f"{option} {name}: is given twice")
        found[name] = value
    return list(found.items())


def as_request(changes: PlanChanges, objective: str | None) -> dict[str, object]:
    """The body of a request to a node. What is not named stays as it is."""
    nodes: dict[str, dict[str, object]] = {name: {} for name in changes.nodes()}
    for name, layers in changes.pins.items():
        nodes[name]["layers"] = list(layers)
    for name, memory_bytes in changes.caps.items():
        nodes[name]["memory_bytes"] = memory_bytes
    for name in changes.drains:
        nodes[name]["duty"] = "drain"
    for name in changes.excludes:
        nodes[name]["duty"] = "exclude"
    body: dict[str, object] = {"nodes": nodes, "reset": sorted(changes.resets)}
    return body if objective is None else {**body, "objective": objective}


def changed_pool(pool: Pool, changes: PlanChanges, where: str) -> Pool:
    """The described machines with the changes; nothing is taken back here: there the file has the last word.

    Raises:
        UsageError: a name that `where` does not describe.
    """
    nodes = {node.node_id: node for node in pool.nodes}
    for name in changes.nodes():
        if name not in nodes:
            raise UsageError(f"{where}: no node is called {name!r}; there are {', '.join(sorted(nodes))}")
    for name, layers in changes.pins.items():
        nodes[name] = replace(nodes[name], pinned=layers)
    for name, memory_bytes in changes.caps.items():
        nodes[name] = replace(nodes[name], memory_bytes=min(memory_bytes, nodes[name].memory_bytes))
    for name in changes.drains | changes.excludes:
        nodes[name] = replace(nodes[name], barred=DRAINS if name in changes.drains else "excluded by hand")
    return Pool(tuple(nodes.values()), pool.links)
