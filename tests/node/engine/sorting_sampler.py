"""What `sample` chooses, said in the plainest way: sort everything. The reference of tests and of the bench."""

from __future__ import annotations

import numpy as np

from node.engine.sampler import uniform
from node.wire.frames import Sampling


def sample_by_sorting(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """The token for index `position`, from finite logits (vocab_size,)."""
    logits = logits.copy()
    for token, bias in sampling.logit_bias:
        if token < len(logits):
            logits[token] += bias
    if sampling.temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - float(logits.max())) / sampling.temperature)
    if sampling.top_k or sampling.top_p < 1:
        order = np.argsort(-logits, kind="stable")
        keep = min(sampling.top_k, len(order)) if sampling.top_k else len(order)
        if sampling.top_p < 1:
            cumulative = np.cumsum(weights[order[:keep]])
            keep = min(keep, 1 + int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1], side="left")))
        weights[order[keep:]] = 0
    weights[weights < sampling.min_p] = 0
    if sampling.typical_p < 1:
        here = np.flatnonzero(weights)
        shares = weights[here] / weights[here].sum()
        surprise = -np.log(shares)
        nearest = np.argsort(np.abs(surprise - (shares * surprise).sum()), kind="stable")
        reached = np.cumsum(shares[nearest])
        keep = 1 + int(np.searchsorted(reached, sampling.typical_p * reached[-1], side="left"))
        weights[here[nearest[keep:]]] = 0
    cumulative = np.cumsum(weights)
    drawn = uniform(sampling.seed, position) * cumulative[-1]
    return int(np.searchsorted(cumulative, drawn, side="right"))
