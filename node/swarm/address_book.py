"""Where the members of this swarm listened when last heard of: what a restarted node begins with.

Kept in `peers.json`. It is a memory, not a truth: a damaged file is dropped with a word in the log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from node.home import Home, write_private
from node.swarm.addresses import ADDRESS_LIMIT, Address, parse_all
from node.wire.ids import NodeId

log = logging.getLogger(__name__)

BOOK_FILE = "peers.json"
PEER_LIMIT = 64
FORGOTTEN_AFTER_S = 30 * 86400.0


@dataclass(slots=True)
class _Entry:
    addresses: tuple[Address, ...]
    seen_s: float
    """Unix time of the last sign of life, 0 for one that was only named to us."""


class AddressBook:
    """The peers of one swarm, at most `PEER_LIMIT`: those heard of most recently."""

    def __init__(self, home: Home, swarm_mark: str, own_id: NodeId, unix_s: float) -> None:
        self.dirty = False
        """Whether there is something to save."""
        self._path = home.data / BOOK_FILE
        self._mark, self._own_id = swarm_mark, own_id
        self._entries = self._read(unix_s)

    def peers(self) -> list[NodeId]:
        """Everyone in it."""
        return list(self._entries)

    def addresses(self, peer: NodeId) -> tuple[Address, ...]:
        """Where it may be found, the likeliest first."""
        entry = self._entries.get(peer)
        return entry.addresses if entry else ()

    def learn(self, peer: NodeId, addresses: Iterable[Address], unix_s: float) -> None:
        """What the peer itself announces: replaces what was known."""
        found = tuple(address.at(None) for address in addresses)[:ADDRESS_LIMIT]
        if not found or peer == self._own_id:
            return
        entry = self._entries.get(peer)
        if entry is None or entry.addresses != found or unix_s - entry.seen_s > 3600:
            self._entries[peer] = _Entry(found, unix_s)
            self._shrink()
            self.dirty = True

    def suggest(self, address: Address) -> NodeId | None:
        """Where somebody else says that a peer is: tried as well, first. The peer, unless it is ourselves."""
        if address.peer is None or address.peer == self._own_id:
            return None
        entry = self._entries.setdefault(address.peer, _Entry((), 0.0))
        place = address.at(None)
        if place not in entry.addresses:
            entry.addresses = (place, *entry.addresses)[:ADDRESS_LIMIT]
            self._shrink()
            self.dirty = True
        return address.peer

    def save(self) -> None:
        """Write it down. Blocks for the disk, so it may run in a thread while more is learned; raises OSError."""
        self.dirty = False
        entries = self._entries.copy().items()  # copied in one step: a dict that changes while it is read raises
        peers = {
            peer: {"addresses": [str(a) for a in entry.addresses], "seen_s": round(entry.seen_s)}
            for peer, entry in entries
        }
        write_private(self._path, json.dumps({"swarm": self._mark, "peers": peers}, indent=1).encode())

    def _shrink(self) -> None:
        while len(self._entries) > PEER_LIMIT:
            del self._entries[min(self._entries, key=lambda peer: self._entries[peer].seen_s)]

    def _read(self, unix_s: float) -> dict[NodeId, _Entry]:
        try:
            content = json.loads(self._path.read_bytes())
            if content["swarm"] != self._mark:
                return {}  # of a swarm that this node has left
            entries = {
                NodeId(str(peer)): _Entry(parse_all(fields["addresses"]), float(fields["seen_s"]))
                for peer, fields in content["peers"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s cannot be read and is made anew: %r", self._path, error)
            return {}
        return {
            peer: entry
            for peer, entry in entries.items()
            if peer != self._own_id and (entry.seen_s == 0 or unix_s - entry.seen_s < FORGOTTEN_AFTER_S)
        }
