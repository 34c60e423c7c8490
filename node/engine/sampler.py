"""Logits to a token. The random number depends on (seed, position) alone: any node draws the same token.

Philox is counter-based: the pair is its key, there is no state to carry from step to step or from node to node. numpy
promises its raw stream for all versions. The rest is float64 on the processor, in token-id order, so that no device's
order of summation changes a draw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.errors import EngineError
from node.wire.frames import Sampling


def sample(logits: NDArray[np.floating], sampling: Sampling, position: int) -> int:
    """The token for index `position` of its sequence, from logits (vocab_size,).

    Temperature comes first, then top-k, then top-p. Equal logits: the lower id is kept, and wins where greedy.

    Raises:
        EngineError: the logits hold NaN or +inf, or nothing but -inf.
    """
    highest = float(logits.max())
    if not np.isfinite(highest):  # max gives NaN as soon as there is one
        raise EngineError(f"the model's logits at position {position} have the maximum {highest}; no token to choose")
    if sampling.temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the highest to -inf, as it should
        weights = np.exp((logits.astype(np.float64) - highest) / sampling.temperature)
    _keep_top(weights, logits, sampling)
    cumulative = np.cumsum(weights)
    drawn = uniform(sampling.seed, position) * cumulative[-1]
    return int(np.searchsorted(cumulative, drawn, side="right"))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    raw = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def _keep_top(weights: NDArray[np.float64], logits: NDArray[np.floating], sampling: Sampling) -> None:
    """Set the weights to 0 that top-k and top-p exclude. The most probable token always stays.

    The logits tell the order: of two that differ by next to nothing the weights are equal.
    """
    if sampling.top_k == 0 and sampling.top_p == 1:
        return
    order = np.argsort(-logits, kind="stable")
    keep = min(sampling.top_k, len(order)) if sampling.top_k else len(order)
    if sampling.top_p < 1:
        cumulative = np.cumsum(weights[order[:keep]])
        # the fewest whose probabilities reach top_p together
        keep = min(keep, 1 + int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1], side="left")))
    weights[order[keep:]] = 0
