"""Logits to a token. The random number depends on (seed, position) alone: any node draws the same token.

Philox is counter-based: the pair is its key, there is no state to carry from step to step or from node to node. numpy
promises its raw stream for all versions. The rest is float64 on the processor, in token-id order, so that no device's
order of summation changes a draw.

What top-k and top-p keep is found without sorting the vocabulary: some of the highest logits are selected, and more of
them where those turn out to be too few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.errors import EngineError
from node.wire.frames import Sampling

FIRST_SELECTED = 256
"""Of the highest logits: mostly more than top-p keeps, and little to sort."""
WIDEN = 8
"""Times as many are looked at next, where those are too few."""


def sample(logits: NDArray[np.floating], sampling: Sampling, position: int) -> int:
    """The token for index `position` of its sequence, from logits (vocab_size,).

    Biases are added first; then come temperature, top-k, top-p, min-p and typical-p, each among what the one before has
    left. Equal logits: the lower id is kept, and wins where greedy.

    Raises:
        EngineError: the logits hold NaN or +inf, or nothing but -inf.
    """
    if sampling.logit_bias:
        logits = _biased(logits, sampling)
    return _chosen(logits, float(logits.max()), sampling, position)


def sample_rows(
    logits: NDArray[np.floating], samplings: Sequence[Sampling], positions: Sequence[int]
) -> list[int | EngineError]:
    """`sample` for each row of (rows, vocab_size); an error in place of a token where a row names none."""
    if any(sampling.logit_bias for sampling in samplings):
        pairs = zip(logits, samplings, strict=True)
        logits = np.stack([_biased(row, one) if one.logit_bias else row for row, one in pairs])
    highest = logits.max(1)
    greedy = logits.argmax(1) if any(sampling.temperature == 0 for sampling in samplings) else None
    chosen: list[int | EngineError] = []
    for row, (sampling, position) in enumerate(zip(samplings, positions, strict=True)):
        try:
            if greedy is not None and sampling.temperature == 0 and np.isfinite(highest[row]):
                chosen.append(int(greedy[row]))
            else:
                chosen.append(_chosen(logits[row], float(highest[row]), sampling, position))
        except EngineError as error:
            chosen.append(error)
    return chosen


def _biased(logits: NDArray[np.floating], sampling: Sampling) -> NDArray[np.floating]:
    """A copy with biases added; those of ids that the vocabulary lacks change nothing."""
    logits = logits.copy()
    for token, bias in sampling.logit_bias:
        if token < len(logits):
            logits[token] += logits.dtype.type(bias)
    return logits


def _chosen(logits: NDArray[np.floating], highest: float, sampling: Sampling, position: int) -> int:
    if not np.isfinite(highest):  # max gives NaN as soon as there is one
        raise EngineError(f"the model's logits at position {position} have the maximum {highest}; no token to choose")
    if sampling.temperature == 0:
        return int(logits.argmax())
    kept = _kept(logits, highest, sampling)
    weights = _weights(logits if kept is None else logits[kept], highest, sampling)
    if (fewer := _likely(weights, sampling)) is not None:
        kept = fewer if kept is None else kept[fewer]
        weights = weights[fewer]
    # in token-id order, and with all of the vocabulary's zeros left out, which change no sum
    cumulative = np.cumsum(weights)
    drawn = uniform(sampling.seed, position) * cumulative[-1]
    index = int(np.searchsorted(cumulative, drawn, side="right"))
    return index if kept is None else int(kept[index])


def _likely(weights: NDArray[np.float64], sampling: Sampling) -> NDArray[np.intp] | None:
    """The indices, rising, of the weights that min-p and typical-p leave; None for all. The highest weight is 1."""
    left: NDArray[np.intp] | None = None
    if sampling.min_p > 0:
        left = np.flatnonzero(weights >= sampling.min_p)
        weights = weights[left]
    if sampling.typical_p == 1:
        return left
    typical = _typical(weights, sampling.typical_p)
    return typical if left is None else left[typical]


def _typical(weights: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """The fewest, rising, whose surprise is nearest to the mean one and that have `share` of all together.

    Locally typical sampling (Meister et al., arXiv:2202.00666). Equally near ones: the lower index first.
    """
    probabilities = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        mean = float(np.where(probabilities > 0, probabilities * surprise, 0.0).sum())
    order = np.argsort(np.abs(surprise - mean), kind="stable")
    reached = np.cumsum(probabilities[order])
    return np.sort(order[: 1 + int(np.searchsorted(reached, share * reached[-1]))])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    raw = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def _weights(logits: NDArray[np.floating], highest: float, sampling: Sampling) -> NDArray[np.float64]:
    """Of these tokens; the most probable one's is 1."""
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the highest to -inf, as it should
        return np.exp((logits.astype(np.float64) - highest) / sampling.temperature)


def _kept(logits: NDArray[np.floating], highest: float, sampling: Sampling) -> NDArray[np.intp] | None:
    """The ids that top-k and top-p leave, rising; None for all. The most probable token always stays.

    The logits tell the order: of two that differ by next to nothing the weights are equal.
    """
    ids = _highest(logits, sampling.top_k) if 0 < sampling.top_k < len(logits) else None
    if sampling.top_p == 1:
        return ids
    pool = logits if ids is None else logits[ids]
    inside = _nucleus(pool, _weights(pool, highest, sampling), sampling.top_p)
    return inside if ids is None else ids[inside]


def _highest(logits: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """The ids of the `count` highest, rising; of equal ones the lower ids."""
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _nucleus(logits: NDArray[np.floating], weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """The indices of the fewest whose weights reach `top_p` of all together, rising.

    By definition weights are added up from the highest on, one after another. Here whole groups are added up, so sums
    differ by rounding; where that could matter, which it hardly ever does, all are sorted after all.
    """
    total = float(weights.sum())
    slack = (len(weights) + 4) * 2.0**-50 * total
    found = _roughly(logits, weights, top_p * total - slack, top_p * total + slack)
    if found is None:
        order = _in_order(logits, np.arange(len(logits)))
        reached = np.cumsum(weights[order])
        found = np.sort(order[: 1 + int(np.searchsorted(reached, top_p * reached[-1]))])
    return found


def _roughly(
    logits: NDArray[np.floating], weights: NDArray[np.float64], least: float, most: float
) -> NDArray[np.intp] | None:
    """The fewest of the highest whose weights reach a sum between `least` and `most`, rising; None where it matters
    what sum exactly. Narrows the part of the vocabulary in which the last of them is, without sorting it."""
    kept = np.zeros(len(logits), np.bool_)
    reached = 0.0
    """By those."""
    rest = np.arange(len(logits))
    """Where the last one is, rising."""
    count, bounded, equal = FIRST_SELECTED, False, False
    while len(rest) > FIRST_SELECTED and not equal:  # equal ones are in their order already
        count = min(count, len(rest) // 2)
        own = logits[rest]
        pivot = np.partition(own, len(own) - count)[len(own) - count]
        for ties, group in ((False, rest[own > pivot]), (True, rest[own == pivot])):
            sum_with = reached + float(weights[group].sum())
            if least <= sum_with < most:
                return None
            if sum_with >= most:
                rest, bounded, equal = group, True, ties
                break
            kept[group], reached = True, sum_with
        else:
            rest = rest[own < pivot]
        count = len(rest) // 2 if bounded else count * WIDEN
    order = _in_order(logits, rest)
    sums = reached + np.cumsum(weights[order])
    first, last = int(np.searchsorted(sums, least)), int(np.searchsorted(sums, most))
    if first != last or last == len(order):
        return None
    kept[order[: last + 1]] = True
    return np.flatnonzero(kept)


def _in_order(logits: NDArray[np.floating], indices: NDArray[np.intp]) -> NDArray[np.intp]:
    """These indices from the highest logit to the lowest; of equal ones the lower index first."""
    return indices[np.argsort(-logits[indices], kind="stable")]
