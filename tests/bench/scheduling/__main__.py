"""Prints how fast the scheduler plans and routes, and how its plans do against others in the simulator.

python -m tests.bench.scheduling            # both tables
python -m tests.bench.scheduling speed      # seconds
python -m tests.bench.scheduling quality    # an hour of one core; later ones keep what rivals did
python -m tests.bench.scheduling quality 1 unequal    # one seed instead of five, pools whose names have the word
python -m tests.bench.scheduling quality 5 "" paper    # against the published Parallax alone: a quarter of an hour
"""

from __future__ import annotations

import sys

from tests.bench.scheduling.quality import quality
from tests.bench.scheduling.speed import speed


def main() -> None:
    """What the command line asks for."""
    asked = sys.argv[1:]
    if not asked or asked[0] == "speed":
        speed()
    if not asked or asked[0] == "quality":
        seeds = int(asked[1]) if len(asked) > 1 else 5
        quality(seeds, asked[2] if len(asked) > 2 else "", asked[3].split(",") if len(asked) > 3 else ())


if __name__ == "__main__":
    main()
