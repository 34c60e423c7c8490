"""What a head knows of nodes' load and room beyond their last records: what it gave them, freed there, was refused.

A record comes about once a second. Until then two requests of one head would take the same node for idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from node.plan.live.offers import NONE_UNTOLD, Untold
from node.wire.ids import NodeId
from node.wire.records import NodeRecord

SETTLE_S = 0.25
"""A record that is heard sooner after an opening may have been written before the node knew of it. An ending counts as
told by any newer record: to think a node fuller than it is costs a moment, to think it emptier costs a refusal."""
FORGET_S = 5.0
"""A node whose record has not changed for so long tells all that is there."""


@dataclass(frozen=True, slots=True)
class _Change:
    load: float
    kv_tokens: int
    seq: int
    """Of the node's record when it happened."""
    at_s: float
    refused_tokens: int | None = None
    """The node said that it has no room for so many."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request under way."""

    visits: Counter[NodeId]
    """How often its chain comes to each node."""
    kv_tokens: int
    """What it reserves at each visit."""


class Ledger:
    """Changes that records do not tell yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard: dict[NodeId, tuple[int, float]] = {}
        """The number of each node's record, and when it was first heard."""
        self._changes: dict[NodeId, list[_Change]] = {}

    def opened(self, nodes: Sequence[NodeId], kv_tokens: int) -> Entry:
        """A request goes along `nodes`; one that is there twice reserves twice."""
        entry = Entry(Counter(nodes), kv_tokens)
        self._note_all(entry, 1)
        return entry

    def closed(self, entry: Entry) -> None:
        """It has ended, however it did."""
        self._note_all(entry, -1)

    def refused(self, node: NodeId, kv_tokens: int) -> None:
        """A node has said that it has no room for a request, whatever its record tells."""
        self._note(node, _Change(0, 0, self._seq_of(node), self._clock(), kv_tokens))

    def heard(self, record: NodeRecord) -> None:
        """A node has told how it is. Harmless when repeated."""
        seq, heard_s = self._heard.get(record.id, (-1, 0.0))
        if record.seq != seq:
            seq, heard_s = self._heard[record.id] = record.seq, self._clock()
        elif record.id not in self._changes:
            return
        known = [c for c in self._changes.pop(record.id, ()) if not self._is_told(c, seq, heard_s)]
        if known:
            self._changes[record.id] = known

    def _is_told(self, change: _Change, seq: int, heard_s: float) -> bool:
        settle_s = SETTLE_S if change.load >= 0 else 0.0
        told = seq > change.seq and heard_s >= change.at_s + settle_s
        return told or self._clock() >= change.at_s + FORGET_S

    def keep_only(self, members: Mapping[NodeId, NodeRecord]) -> None:
        """Forget nodes that are gone."""
        for node in [node for node in {*self._heard, *self._changes} if node not in members]:
            self._heard.pop(node, None)
            self._changes.pop(node, None)

    def untold(self, node: NodeId) -> Untold:
        """What has changed there since its record was written."""
        changes = self._changes.get(node)
        if not changes:
            return NONE_UNTOLD
        return Untold(
            sum(c.load for c in changes),
            sum(c.kv_tokens for c in changes),
            min((c.refused_tokens for c in changes if c.refused_tokens is not None), default=None),
        )

    def _note_all(self, entry: Entry, sign: int) -> None:
        hops = entry.visits.total()
        for node, visits in entry.visits.items():
            load, kv_tokens = visits / hops, visits * entry.kv_tokens
            self._note(node, _Change(sign * load, sign * kv_tokens, self._seq_of(node), self._clock()))

    def _note(self, node: NodeId, change: _Change) -> None:
        self._changes.setdefault(node, []).append(change)

    def _seq_of(self, node: NodeId) -> int:
        return self._heard.get(node, (0, 0.0))[0]
