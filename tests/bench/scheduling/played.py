"""What a run came to, and the rivals' results kept between runs: they change only with their own code or the simulator.

Kept in a file of the system's temporary folder, under a hash of everything that they depend on; delete it at will.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.bench.scheduling.loads import kept_up
from tests.bench.simulate import Outcome

ROOT = Path(__file__).parents[3]
DEPENDS_ON = (
    "tests/bench/rivals/*.py",
    "tests/bench/simulate.py",
    "tests/bench/scheduling/loads.py",
    "tests/bench/scheduling/pools.py",
    "tests/fakes/pools.py",
    "node/plan/chain_time.py",
    "node/plan/costs/*.py",
    "node/plan/machines/*.py",
    "node/plan/placement/water_filling.py",
)


class Played(msgspec.Struct, frozen=True):
    """One scheduler under one load."""

    tokens_per_s: float
    mean_ms: float
    kept_up: bool
    served: bool
    """Whether anybody was answered."""
    unserved: int


def played(outcome: Outcome) -> Played:
    """What of it is compared."""
    return Played(
        outcome.tokens_per_s,
        outcome.mean_ms if outcome.served else 0.0,
        kept_up(outcome),
        bool(outcome.served),
        outcome.unserved,
    )


class Kept:
    """Results by name."""

    def __init__(self) -> None:
        digest = hashlib.sha256()
        for pattern in DEPENDS_ON:
            for path in sorted(ROOT.glob(pattern)):
                digest.update(path.read_bytes())
        self._path = Path(tempfile.gettempdir()) / f"parallax-bench-{digest.hexdigest()[:16]}.json"
        try:
            self._known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Played])
        except (OSError, msgspec.DecodeError):
            self._known = {}

    def get(self, name: str, play: Callable[[], Played]) -> Played:
        """The result of that name, played if it is not known."""
        if name not in self._known:
            self._known[name] = play()
            self._path.write_bytes(msgspec.json.encode(self._known))
        return self._known[name]
