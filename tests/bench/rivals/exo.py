"""exo: of all rings that hold the model one with the fewest nodes, of these one with the most memory; layers by memory.

From exo's placement (`place_instance`, `allocate_layers_proportionally`). Where rounding gives a node more than it
holds exo refuses the ring; here the others take it, which is kinder.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.plan.machines.pool import Pool
from node.plan.placement.allocation import Stage
from node.plan.placement.water_filling import water_fill
from tests.bench.rivals.fixed_chains import FixedChains, tiled
from tests.bench.rivals.same_memory import chain_rooms


class Exo(FixedChains):
    """One ring for all requests."""

    def place(self, pool: Pool) -> Sequence[Stage]:
        """The ring over the largest nodes, as few as hold the model."""
        by_memory = sorted(pool.nodes, key=lambda n: (-n.memory_bytes, n.node_id))
        for size in range(1, len(by_memory) + 1):
            ring = by_memory[:size]
            rooms = chain_rooms(self.model, ring)
            if sum(rooms) >= self.model.layers and min(rooms) > 0:
                shares = water_fill(rooms, [float(n.memory_bytes) for n in ring], self.model.layers)
                self.pipelines = [tiled(ring, shares)]
                return self.pipelines[0]
        self.pipelines = []
        return ()
