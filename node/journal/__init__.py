"""What has happened on this node, and what it adds up to: the log, the state, and the pure step from one to the other."""

from node.journal.apply import apply
from node.journal.log import Gap, Journal
from node.journal.state import ModelStatus, NodeView, RequestView, State

__all__ = ["Gap", "Journal", "ModelStatus", "NodeView", "RequestView", "State", "apply"]
