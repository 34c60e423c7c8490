"""What routing chooses among and for: held ranges that serve, and a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from node.errors import NoRoom, NoRoute
from node.plan.chain_time import CHUNK_TOKENS
from node.plan.machines.pool import Located
from node.plan.routing.segments import Ranged
from node.wire.layer_range import layer_range

LOAD = 1.5
"""A sequence that is at a node delays the next one by this many of its steps there: by its own, and by its part of the
prompts, which with usual lengths takes half as long again."""
EDGE = 1e-8
"""To use a part of a held range counts at least this fraction of the fastest compute: it decides among equal chains."""
PART_WORTH = 0.05
"""What a part of a range must save of the fastest compute in a live swarm, see `Request.part_worth`."""
SLOWEST_MS = 1e12
"""A layer that takes longer never ends."""
MOST_LOAD = 1e9
"""Sequences at one node: there are no more."""
USUAL_OUTPUT_TOKENS = 256
"""Of an answer; its bound is mostly far longer than it gets."""


@dataclass(frozen=True, slots=True)
class Host:
    """A held range that serves. A node that holds two has two."""

    node_id: str
    start: int
    end: int
    """Half-open."""
    layer_ms: float
    """Of one decode step in one layer, measured or predicted."""
    region: str = ""
    load: float = 0.0
    """Sequences that are there at a time: of each request on a chain of n stages, 1/n is at every one of them."""
    kv_free_tokens: int | None = None
    """Room in its KV cache; None: not bounded here."""
    kv_tokens: int | None = None
    """The same when nothing runs on it."""
    overhead_ms: float = 0.0
    """Of every visit, beside its layers."""
    head_ms: float = 0.0
    """LM head and sampling, where a chain ends here."""
    chunk_layer_ms: float = 0.0
    """Of a prompt's chunk of CHUNK_TOKENS tokens in one layer; less than a decode step's counts as that."""

    @property
    def slower(self) -> float:
        """By what load makes each of its layers slower."""
        return 1 + LOAD * self.load


@dataclass(frozen=True, slots=True)
class Request:
    """What routing must know about a request."""

    hop_bytes: float = 0.0
    """Activations of one token, which every hop carries."""
    kv_tokens: int = 0
    """Room that its keys and values need on every stage."""
    head: Located | None = None
    """The node that answers it: charged for the way to the first stage and from the tail; None: charged for neither."""
    spread: int = 0
    """Which of equally good nodes it takes; a hash of the request's id spreads requests evenly."""
    avoid: frozenset[str] = frozenset()
    """Node ids that it must not use."""
    part_worth: float = EDGE
    """To use a part of a held range must save this fraction of the fastest compute: figures that nodes measure are not
    exact, and a further node is one more that may fail."""
    prompt_tokens: int = 1
    """What goes through the chain before its first token."""
    output_tokens: int = USUAL_OUTPUT_TOKENS
    """Expected of the answer: the prompt's time is shared out over them."""

    @property
    def first_chunk(self) -> int:
        """Tokens of the prompt's first chunk."""
        return min(self.prompt_tokens, CHUNK_TOKENS)

    @property
    def once(self) -> float:
        """Weight of what the whole answer pays once, per output token."""
        return 1 / max(1, self.output_tokens)

    def layer_ms(self, host: Host) -> float:
        """Of one layer on `host` per output token: its decode steps, and the first chunk once."""
        chunk = max(host.layer_ms, host.chunk_layer_ms * self.first_chunk / CHUNK_TOKENS)
        return host.slower * ((1 - self.once) * host.layer_ms + self.once * chunk)

    @property
    def sent_bytes(self) -> float:
        """What every hop carries per output token: a token's activations, and the first chunk's once."""
        return self.hop_bytes * ((1 - self.once) + self.once * self.first_chunk)


PLAIN = Request()


def usable(layers: int, hosts: Sequence[Host], request: Request, *, idle: bool = False) -> list[Host]:
    """Hosts with room for the request; `idle`: those that have it when nothing runs on them.

    Raises:
        NoRoom: some layers are only on nodes that are full.
        NoRoute: some layers have no node.
    """
    sound = [host for host in hosts if serves(host, layers) and host.node_id not in request.avoid]
    able = [host for host in sound if has_room(host, request, idle=idle)]
    if (gap := uncovered(layers, sound)) is not None:
        why = "have no ready node; wait for one to load or return, or see `parallax status`"
        raise NoRoute(f"layers {layer_range(*gap)} of {layers} {why}")
    if (gap := uncovered(layers, able)) is not None:
        why = f"are on nodes without KV room for {request.kv_tokens} more tokens; wait for a request to end"
        raise NoRoom(f"layers {layer_range(*gap)} of {layers} {why}")
    return able


def serves(host: Host, layers: int) -> bool:
    """Whether its figures make sense at all; those that are no numbers are above nothing."""
    return 0 <= host.start < host.end <= layers and is_sane(host)


def is_sane(host: Host) -> bool:
    """Whether its times and its load can be: finite, and not negative."""
    return (
        0 <= host.layer_ms <= SLOWEST_MS
        and 0 <= host.load <= MOST_LOAD
        and 0 <= host.overhead_ms <= SLOWEST_MS
        and 0 <= host.head_ms <= SLOWEST_MS
        and 0 <= host.chunk_layer_ms <= SLOWEST_MS
    )


def has_room(host: Host, request: Request, *, idle: bool = False) -> bool:
    """Whether its KV cache has room for the request; `idle`: when nothing runs on it."""
    room = host.kv_tokens if idle else host.kv_free_tokens
    return room is None or room >= request.kv_tokens


def uncovered(layers: int, ranges: Iterable[Ranged]) -> tuple[int, int] | None:
    """The first layers [start, end) that nobody holds, or None."""
    reached = 0
    for start, end in sorted((held.start, held.end) for held in ranges):
        if start > reached:
            return reached, start
        reached = max(reached, end)
    return (reached, layers) if reached < layers else None
