"""Gradient's Parallax as its release runs by default: disjoint pipelines over the whole pool, visited round robin.

Regions and round trips have no say in phase 1, and nodes that complete no pipeline stand by.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.plan.machines.pool import Pool
from node.plan.placement.allocation import Stage
from tests.bench.rivals.fixed_chains import FixedChains
from tests.bench.rivals.parallax_chains import best_chains, filled


class ParallaxRelease(FixedChains):
    """Chains by capacity, requests in turn."""

    def place(self, pool: Pool) -> Sequence[Stage]:
        """All nodes in one heap."""
        self.pipelines = [filled(self.model, chain) for chain in best_chains(self.model, pool.nodes)]
        return [stage for pipeline in self.pipelines for stage in pipeline]
