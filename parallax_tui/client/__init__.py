"""How the TUI talks to a node: HTTP, server-sent events and the event stream. Knows nothing of screens."""

from parallax_tui.client.follow import follow
from parallax_tui.client.node_client import EventsGone, NodeClient

__all__ = ["EventsGone", "NodeClient", "follow"]
