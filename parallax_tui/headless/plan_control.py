"""Asks this home's node what the swarm's plan would be, or to make it so, and tells what that means."""

from __future__ import annotations

import msgspec

from node.home import Home
from node.wire.layer_range import layer_range
from parallax_tui.headless.node_connection import ask_plan
from parallax_tui.headless.plan_changes import PlanChanges, as_request
from parallax_tui.refusal import NodeRefused
from parallax_tui.state.cells import safe
from parallax_tui.state.figures import size

BAD_REQUEST, DOES_NOT_FIT = 400, 422


class Move(msgspec.Struct, frozen=True):
    """A node whose layers would be others; each [start, end)."""

    name: str
    before: tuple[int, int] | None
    after: tuple[int, int] | None


class PlanReply(msgspec.Struct, frozen=True):
    """What is read of the node's reply."""

    epoch: int
    changes: bool
    applied: bool
    reason: str
    load_bytes: int
    load_s: float
    moves: tuple[Move, ...]
    problems: tuple[str, ...]
    left_out: tuple[tuple[int, int], ...]
    """With no node for a while on the way."""
    text: str
    """Table, map and prediction."""


def ask(home: Home, changes: PlanChanges, objective: str | None, *, apply: bool, as_json: bool) -> str:
    """The node's reply as text or JSON.

    Raises:
        NodeRefused: what was asked cannot be (exit code 2), or it came too late.
        NoNode: none runs here.
    """
    request = as_request(changes, objective)
    try:
        if as_json:
            data = ask_plan(home, request, dict[str, object], apply=apply)
            data.pop("text", None)
            return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
        return "\n".join(safe(line) for line in plan_lines(ask_plan(home, request, PlanReply, apply=apply)))
    except NodeRefused as refused:
        if refused.status in (BAD_REQUEST, DOES_NOT_FIT):
            refused.exit_code = 2  # as for an option that is wrong in itself
        raise


def plan_lines(reply: PlanReply) -> list[str]:
    """For people."""
    lines = [*reply.text.splitlines(), *(f"left out: {problem}" for problem in reply.problems), ""]
    if not reply.changes:
        return [*lines, f"plan {reply.epoch} stays as it is: {reply.reason}"]
    lines += _moves(reply)
    if reply.left_out:
        out = " and ".join(layer_range(*each) for each in reply.left_out)
        lines.append(f"nothing is served for a while: there is no room for old and new at once: layers {out}")
    if reply.reason not in reply.text:  # the table has the plan's note, which may be the reason
        lines.append(reply.reason)
    if reply.applied:
        return [*lines, "", f"plan {reply.epoch} is in force; follow it with `parallax status`"]
    return [*lines, "", "nothing was changed; add --apply"]


def _moves(reply: PlanReply) -> list[str]:
    if not reply.moves:
        return ["no layers move"]
    widest = max(len(move.name) for move in reply.moves)
    moves = [f"  {move.name:<{widest}}  {_held(move.before)} → {_held(move.after)}" for move in reply.moves]
    takes = f", about {reply.load_s:.0f} s" if reply.load_s else ""
    return ["changes:", *moves, f"  {size(reply.load_bytes)} to load{takes}"]


def _held(held: tuple[int, int] | None) -> str:
    return f"layers {layer_range(*held)}" if held is not None else "none"
