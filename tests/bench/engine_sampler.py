"""What choosing a token costs, as a ratio to sorting the whole vocabulary, both in this run on this machine.

    python -m tests.bench.engine_sampler [--rounds 60]

Times are CPU time of this thread. Logits are random with the spread that language models show. Nothing is asserted but
that both ways choose the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from node.engine.sampler import sample
from node.wire.frames import Sampling
from tests.node.engine.sorting_sampler import sample_by_sorting

VOCABULARIES = {"SmolLM2": 49_152, "Llama 3": 128_256, "Qwen": 151_936}
SAMPLINGS = {
    "greedy": Sampling(),
    "T 0.2, top-p 0.9 (the default model's)": Sampling(temperature=0.2, top_p=0.9, seed=1),
    "T 0.7, top-p 0.8, top-k 20 (Qwen's)": Sampling(temperature=0.7, top_p=0.8, top_k=20, seed=1),
    "T 1, top-p 0.95": Sampling(temperature=1.0, top_p=0.95, seed=1),
    "T 2, top-p 0.95 (flat)": Sampling(temperature=2.0, top_p=0.95, seed=1),
    "T 1, top-k 50": Sampling(temperature=1.0, top_k=50, seed=1),
    "T 1, no limits": Sampling(temperature=1.0, seed=1),
}
SPREAD = 2.5
"""Standard deviation of a language model's logits."""

Choose = Callable[[np.ndarray, Sampling, int], int]


def timed(choose: Choose, rows: list[np.ndarray], sampling: Sampling) -> tuple[float, list[int]]:
    """Median CPU milliseconds per token, and the tokens."""
    tokens, times_s = [], []
    for position, logits in enumerate(rows):
        started_s = time.thread_time()
        tokens.append(choose(logits, sampling, position))
        times_s.append(time.thread_time() - started_s)
    return 1e3 * statistics.median(times_s), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    random = np.random.default_rng(1)
    for model, vocabulary in VOCABULARIES.items():
        rows = [(SPREAD * random.standard_normal(vocabulary)).astype(np.float32) for _ in range(rounds)]
        for row in rows:  # a few tokens stand out, as they do
            row[random.integers(0, vocabulary, 8)] += 6 + 3 * random.random(8).astype(np.float32)
        print(f"\n{model}, vocabulary of {vocabulary:,}:  ms of CPU per token, sorting → selecting")
        for name, sampling in SAMPLINGS.items():
            sorting_ms, expected = timed(sample_by_sorting, rows, sampling)
            selecting_ms, tokens = timed(sample, rows, sampling)
            assert tokens == expected, name
            print(f"  {name:40} {sorting_ms:7.2f} → {selecting_ms:6.2f}   {selecting_ms / sorting_ms:5.2f}×")


if __name__ == "__main__":
    main()
