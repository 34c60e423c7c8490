"""How long a prompt's chunks are on a chain: what its slowest link carries in a moment. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from node.plan.chain_time import CHUNK_TOKENS
from node.wire.frames import Hop
from node.wire.ids import NodeId
from node.wire.records import NodeRecord

TRANSFER_S = 0.1
"""What streams over the same link is not held up for longer, and the stages behind it have something to do sooner."""
LEAST_TOKENS = 16
"""Below this a chunk costs a stage as much as a decode step does, whatever its length."""


def chunk_tokens(chain: Sequence[Hop], records: Mapping[NodeId, NodeRecord], row_bytes: int) -> int:
    """Tokens of a chunk, `LEAST_TOKENS` to `CHUNK_TOKENS`. A link whose rate nobody has measured counts as fast.

    `row_bytes` is what a token's hidden state takes.
    """
    rates = [
        rate
        for one, other in pairwise(chain)
        if one.node_id != other.node_id
        and (record := records.get(NodeId(other.node_id))) is not None
        and (rate := record.mbps.get(one.node_id)) is not None
    ]
    if not rates:
        return CHUNK_TOKENS
    fitting = min(rates) * 1e6 / 8 * TRANSFER_S / row_bytes
    return max(LEAST_TOKENS, min(CHUNK_TOKENS, int(fitting)))
