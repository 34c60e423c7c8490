"""How the TUI talks to a node: HTTP, server-sent events and the event stream. Knows nothing of screens."""

import sys

# httpx imports its own command line, which loads click wherever that is installed. Without `_main` it does without, as
# it is built to.
if "httpx" not in sys.modules:
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

from parallax_tui.client.follow import follow
from parallax_tui.client.node_client import EventsGone, NodeClient

__all__ = ["EventsGone", "NodeClient", "follow"]
