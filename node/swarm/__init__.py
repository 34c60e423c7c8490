"""libp2p host, identity, invitation, discovery, membership, links."""

from node.swarm.libp2p_parts import use_parts

use_parts()  # before anything of libp2p is imported
