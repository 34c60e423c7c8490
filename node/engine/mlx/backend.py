"""MLX on one device: the graphics chip of Apple silicon, or a processor under Linux."""

from __future__ import annotations

from collections.abc import Generator

import mlx.core as mx

from node.engine.backend import Device
from node.engine.base import StageSpec
from node.engine.mlx.library import make_library_known
from node.engine.mlx.loading import SharedModules, load_stage
from node.engine.mlx.stage import MlxStage
from node.errors import EngineError

FREED_KEPT_BYTES = 1 << 30
"""Of what was freed, for the next arrays: chunks of all lengths would else leave memory behind that nobody counts."""


class MlxBackend:
    """A `backend.Backend`."""

    def __init__(self, device: Device) -> None:
        """Raises EngineError: MLX does not compute on that device here."""
        if device == "cpu":
            mx.set_default_device(mx.cpu)
            mx.disable_compile()  # on a processor it would ask for a C++ compiler
        elif device == "mps" and mx.metal.is_available():
            mx.set_default_device(mx.gpu)
            if most := mx.device_info().get("max_recommended_working_set_size"):
                mx.set_wired_limit(most)  # so that the system does not page weights out between two answers
        else:
            raise EngineError(f"MLX does not compute on {device} here")
        mx.set_cache_limit(FREED_KEPT_BYTES)
        make_library_known()
        self.batched = device != "cpu"
        """Whether decode steps share products: that pays on a chip that reads weights faster than rows come."""
        self.shared = SharedModules()

    def load(self, spec: StageSpec) -> Generator[None, None, MlxStage]:
        """See `backend.Backend.load`."""
        return load_stage(spec, self.shared, self.batched)

    def set_threads(self, threads: int) -> None:
        """MLX decides by itself how it uses the machine."""
