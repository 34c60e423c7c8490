"""What has happened on this node, and what it adds up to: the log, the state, the pure step between them."""

from node.journal.apply import apply
from node.journal.log import Gap, Journal
from node.journal.state import ModelStatus, NodeView, RequestView, State

__all__ = ["Gap", "Journal", "ModelStatus", "NodeView", "RequestView", "State", "apply"]
