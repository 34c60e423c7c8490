"""Names for the things that travel. Ids are text everywhere, so that logs, JSON and people agree."""

from __future__ import annotations

from typing import NewType

NodeId = NewType("NodeId", str)
"""A libp2p peer id in base58 (`12D3KooW…`); it contains the node's Ed25519 public key."""

RequestId = NewType("RequestId", str)
"""One client request, as the OpenAI reply's `id`."""


def short_id(node_id: NodeId) -> str:
    """The last eight characters, which differ between nodes (the first ones never do)."""
    return node_id[-8:]
