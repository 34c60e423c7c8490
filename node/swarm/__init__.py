"""libp2p host, identity, invitation, discovery, membership, links."""

import sys

# libp2p imports httpx, and httpx its own command line, which loads click and rich wherever they are installed: half a
# second and two libraries that no node uses. Without `_main`, httpx does without that command line, as it is built to.
if "httpx" not in sys.modules:
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
