"""Reads a described pool (POOL.toml): `[[node]] name, memory_gib, bandwidth_gbps, tflops, region` and `[[link]] a, b,
rtt_ms, mbps`, where a link's ends are two nodes or two regions. Every error names the file, the key and the reason."""

from __future__ import annotations

import re
import tomllib

from node.errors import BadPool
from node.plan.machines.pool import Links, Pair, Pool, PoolNode, checked

GIB = 1024**3
NODE_KEYS = frozenset({"name", "memory_gib", "bandwidth_gbps", "tflops", "region", "layers", "excluded"})
LINK_KEYS = frozenset({"a", "b", "rtt_ms", "mbps"})
MOST_NODES = 100_000
LEAST = 1e-6
"""Of any figure: a megaFLOP per second, a kilobyte of memory."""


def read_pool(text: str, where: str) -> Pool:
    """The pool that `text` describes; `where` is the file's name, for errors.

    `bandwidth_gbps` is gigabytes per second of the node's memory, `mbps` megabits per second of a link. A node without
    rates gets a prior; a pair without a link gets one by region.

    Raises:
        BadPool: the text is no TOML, or a figure in it cannot be; names file, key and reason.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadPool(where, "TOML", str(error) or "is nested too deeply") from error
    for key in document:
        if key not in ("node", "link"):
            raise BadPool(where, str(key), "is unknown; a pool has [[node]] and [[link]] tables")
    tables = _tables(document, "node", where)
    if not tables:
        raise BadPool(where, "node", "there is none; describe each machine in a [[node]] table")
    if len(tables) > MOST_NODES:
        raise BadPool(where, "node", f"{len(tables)} of them; {MOST_NODES} at most")
    nodes = [_node(table, f"node[{i}]", where) for i, table in enumerate(tables)]
    seen: dict[str, int] = {}
    for i, node in enumerate(nodes):
        if node.node_id in seen:
            raise BadPool(where, f"node[{i}].name", f"{node.node_id!r} is also the name of node[{seen[node.node_id]}]")
        seen[node.node_id] = i
    regions = {node.region for node in nodes if node.region}
    for node in nodes:
        if node.node_id in regions:
            raise BadPool(where, "node.name", f"{node.node_id!r} is also a region; a link could mean either")
    return Pool(tuple(nodes), _links(_tables(document, "link", where), seen.keys() | regions, where))


def _tables(document: dict[str, object], key: str, where: str) -> list[dict[str, object]]:
    found = document.get(key, [])
    if not isinstance(found, list) or any(not isinstance(table, dict) for table in found):
        raise BadPool(where, key, f"must be a list of tables; write [[{key}]]")
    return found


def _node(table: dict[str, object], at: str, where: str) -> PoolNode:
    _known(table, NODE_KEYS, at, where)
    name = _text(table, "name", at, where)
    if not name:
        raise BadPool(where, f"{at}.name", "is missing or empty")
    at = f"{at}.{{}} ({name})"
    memory = _figure(table, "memory_gib", at, where)
    if memory is None:
        raise BadPool(where, at.format("memory_gib"), "is missing")
    bandwidth, tflops = _figure(table, "bandwidth_gbps", at, where), _figure(table, "tflops", at, where)
    excluded = table.get("excluded", False)
    if not isinstance(excluded, bool):
        raise BadPool(where, at.format("excluded"), f"{str(excluded)[:40]!r} is not true or false")
    return PoolNode(
        node_id=name,
        memory_bytes=int(memory * GIB),
        bandwidth_bytes_per_s=None if bandwidth is None else bandwidth * 1e9,
        flops_per_s=None if tflops is None else tflops * 1e12,
        region=_text(table, "region", at, where),
        pinned=_range(table.get("layers"), at.format("layers"), where),
        barred="excluded by hand" if excluded else "",
    )


def _links(tables: list[dict[str, object]], ends: set[str], where: str) -> Links:
    rtt: dict[Pair, float] = {}
    mbps: dict[Pair, float] = {}
    for i, table in enumerate(tables):
        at = f"link[{i}]"
        _known(table, LINK_KEYS, at, where)
        pair = _text(table, "a", at, where), _text(table, "b", at, where)
        for key, end in zip("ab", pair, strict=True):
            if end not in ends:
                raise BadPool(where, f"{at}.{key}", f"{end!r} is neither a node nor a region" if end else "is missing")
        names = f"{at}.{{}} ({pair[0]}–{pair[1]})"
        if pair[0] == pair[1]:
            raise BadPool(where, names.format("b"), "a link leads from one end to another, not back to itself")
        if pair in rtt or pair[::-1] in rtt or pair in mbps or pair[::-1] in mbps:
            raise BadPool(where, names.format("a"), "this pair has a link already; both directions are one link")
        round_trip, rate = _figure(table, "rtt_ms", names, where, zero=True), _figure(table, "mbps", names, where)
        if round_trip is None and rate is None:
            raise BadPool(where, names.format("rtt_ms"), "is missing, and so is mbps")
        if round_trip is not None:
            rtt[pair] = round_trip
        if rate is not None:
            mbps[pair] = rate
    return Links(rtt, mbps)


def _known(table: dict[str, object], keys: frozenset[str], at: str, where: str) -> None:
    for key in table:
        if key not in keys:
            raise BadPool(where, f"{at}.{key}", f"is unknown; known are {', '.join(sorted(keys))}")


def _text(table: dict[str, object], key: str, at: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or len(value) > 128:
        place = at.format(key) if "{" in at else f"{at}.{key}"
        raise BadPool(where, place, f"{str(value)[:40]!r} is not a text of at most 128 characters")
    return value.strip()


def _figure(table: dict[str, object], key: str, at: str, where: str, *, zero: bool = False) -> float | None:
    if key not in table:
        return None
    figure = checked(where, at.format(key), table[key], zero=zero, most=1e9)
    if 0 < figure < LEAST:
        raise BadPool(where, at.format(key), f"{figure:g} is too little for any machine")
    return figure


def _range(value: object, at: str, where: str) -> tuple[int, int] | None:
    """`layers = "0-11"`, both included, or `"0:12"`: set by hand."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,5})\s*([-–:])\s*(\d{1,5})\s*", value, re.ASCII) if isinstance(value, str) else None
    if match is None:
        raise BadPool(where, at, f"{str(value)[:40]!r} is not a range like 0-11 (or 0:12)")
    start, end = int(match[1]), int(match[3]) + (match[2] != ":")
    if end <= start:
        raise BadPool(where, at, f"{str(value)[:40]!r} is empty")
    return start, end
