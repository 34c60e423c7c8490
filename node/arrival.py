"""Tells in the log whose swarm this node is in, and who comes: the first thing that a joining person asks."""

from __future__ import annotations

import logging

import trio

from node.journal.log import Gap, Journal
from node.wire.ids import NodeId

log = logging.getLogger(__name__)

SETTLES_S = 1.0
"""Within so long after the first member the others of a small swarm are known too."""

SILENT_S = 20.0
"""A joining node that has met nobody for so long says so, once."""

NAMED = 3
"""So many members are named, the others counted."""


async def tell_arrival(journal: Journal, joins: bool) -> None:
    """Log the members that there are when the first is met, and each that comes later; runs until cancelled.

    Args:
        journal: of this node.
        joins: whether it was started with an invitation.
    """
    with trio.move_on_after(SILENT_S) as patience:
        await _others_change(journal, frozenset())
    if patience.cancelled_caught:
        if joins:
            log.warning("no member of the swarm has answered yet; still trying (--log-level debug tells what)")
        await _others_change(journal, frozenset())
    await trio.sleep(SETTLES_S)
    known = _others(journal)
    if known:
        log.info(
            "%s %s: %d members",
            "joined the swarm of" if joins else "together with",
            _names(journal, known),
            len(known) + 1,
        )
    while True:
        here = await _others_change(journal, known)
        if fresh := here - known:
            log.info("%s has come: %d members", _names(journal, fresh), len(here) + 1)
        known = here


async def _others_change(journal: Journal, known: frozenset[NodeId]) -> frozenset[NodeId]:
    """The other members, as soon as they are others than these."""
    while (here := _others(journal)) == known:
        try:
            await journal.next_after(journal.state.seq, float("inf"))
        except Gap:
            continue  # the state is read anew, which is all that is wanted
    return here


def _others(journal: Journal) -> frozenset[NodeId]:
    state = journal.state
    return frozenset(node_id for node_id in state.nodes if node_id != state.self_id)


def _names(journal: Journal, members: frozenset[NodeId]) -> str:
    names = sorted(journal.state.name_of(member) for member in members)
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
