"""What has happened on this node, and what it adds up to: the log, the state, and the pure step from one to the other.

The log (`node.journal.log`) waits for readers with trio, so it is imported by its own name: the TUI reads states alone.
"""

from node.journal.apply import apply
from node.journal.state import ModelStatus, NodeView, RequestView, State

__all__ = ["ModelStatus", "NodeView", "RequestView", "State", "apply"]
