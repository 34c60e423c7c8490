"""What the TUI knows at one moment: the node's state, whether the node answers, and what has happened meanwhile.

A value. The follower makes the next one; screens only read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from node.journal.apply import apply
from node.journal.state import State
from node.wire.events import NodeGone, NodeSeen, Notice, Numbered
from node.wire.ids import NodeId
from parallax_tui.state.cells import safe

KEPT_NOTICES = 50

_WHY = {"left": "left", "silent": "fell silent", "disconnected": "was cut off"}


@dataclass(frozen=True, slots=True)
class Live:
    """The latest picture of one node and its swarm."""

    state: State | None = None
    """None until the node has answered once; the last known one while it does not answer."""
    connected: bool = False
    """Whether the event stream is open now."""
    problem: str = ""
    """Why it is not, for people."""
    names: Mapping[NodeId, str] = field(default_factory=dict)
    """Every name seen, so that a node which is gone can still be called by it. Never changed, only replaced."""
    last_words: str = ""
    """What the node that was started for us said before it ended; empty while it lives, or if none was started."""
    notices: tuple[Notice, ...] = ()
    """Oldest first: the node's own, and members coming and going."""

    @property
    def ready(self) -> bool:
        """Whether a chat can be served: this node has its layers, or the swarm holds all of them."""
        if self.state is None:
            return False
        return self.state.model.phase == "ready" or (self.state.plan is not None and not self.state.uncovered())

    @property
    def model(self) -> str:
        """The model's name, or empty where none is known yet."""
        if self.state is None:
            return ""
        return self.state.plan.model.name if self.state.plan is not None else self.state.model.model

    def name_of(self, node_id: NodeId) -> str:
        """The node's name, even after it has gone; the end of its id where no name was ever seen."""
        seen = self.names.get(node_id)
        return safe(seen) if seen else (safe(self.state.name_of(node_id)) if self.state is not None else node_id[-8:])

    def at(self, state: State) -> Live:
        """The picture after a snapshot."""
        return replace(
            self,
            state=state,
            connected=True,
            problem="",
            names={**self.names, **{node_id: view.record.name for node_id, view in state.nodes.items()}},
            notices=self.notices or state.notices,
        )

    def after(self, numbered: Numbered) -> Live:
        """The picture after one more event."""
        if self.state is None or numbered.seq <= self.state.seq:
            return self
        state = apply(self.state, numbered)
        notice = _notice_of(self.state, numbered)
        notices = (*self.notices, notice)[-KEPT_NOTICES:] if notice else self.notices
        return replace(self, state=state, names=_with_name(self.names, numbered), notices=notices)

    def lost(self, problem: str) -> Live:
        """The picture while the node does not answer: what was known stays, marked as old."""
        return replace(self, connected=False, problem=safe(problem))


def _with_name(names: Mapping[NodeId, str], numbered: Numbered) -> Mapping[NodeId, str]:
    match numbered.event:
        case NodeSeen(record=record) if names.get(record.id) != record.name:
            return {**names, record.id: record.name}
        case _:
            return names


def _notice_of(before: State, numbered: Numbered) -> Notice | None:
    match numbered.event:
        case Notice() as notice:
            return notice
        case NodeGone(name=name, why=why):
            return Notice("info" if why == "left" else "warning", f"{name} {_WHY[why]}")
        case NodeSeen(record=record) if record.id not in before.nodes and record.id != before.self_id:
            return Notice("info", f"{record.name} joined")
        case _:
            return None
