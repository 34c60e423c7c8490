"""What computing on a model's weights as they are stored costs in quality, measured once for each form.

Against 32-bit arithmetic on the same weights, over 384 tokens of English prose about software, with a model of 135
million parameters: the mean KL divergence of the next token's distribution, and how often its first choice is the same.
It says nothing of what the weights lost when they were quantised; a larger model loses less by either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one form of weights."""

    kl: float
    """Mean over tokens, in nats."""
    top1: float
    """Share of tokens whose first choice is the same."""


EXACT = Quality(0.0, 1.0)

FIGURES: Mapping[str, Quality] = {
    **dict.fromkeys(("F32", "F16", "BF16"), EXACT),
    "Q8_0": Quality(3.2e-3, 0.948),
    "Q6_K": Quality(1.8e-3, 0.977),
    "Q5_K": Quality(3.3e-3, 0.974),
    "Q4_0": Quality(2.8e-3, 0.974),
    "Q4_1": Quality(4.2e-3, 0.948),
    "Q4_K": Quality(4.0e-3, 0.979),
    "IQ4_NL": Quality(3.1e-3, 0.958),
    "int8": Quality(4.5e-3, 0.969),
}
"""By ggml's type, or what `--quantize` makes."""

SMALL_SHARE = 0.05
"""A type of fewer of the weights than that does not count."""


def quality_of(stored: Mapping[str, int]) -> Quality | None:
    """The worst of the forms that a model's matrices are stored in; None where one has not been measured."""
    total = sum(stored.values())
    counted = [kind for kind, count in stored.items() if count >= SMALL_SHARE * total]
    found = [FIGURES.get(kind) for kind in counted]
    known = [figure for figure in found if figure is not None]
    if not known or len(known) != len(found):
        return None
    return Quality(max(figure.kl for figure in known), min(figure.top1 for figure in known))


def form_of(stored: Mapping[str, int]) -> str:
    """For people: the types that matter, the most frequent first: `Q4_K, Q6_K`."""
    total = sum(stored.values())
    counted = sorted(stored.items(), key=lambda entry: -entry[1])
    return ", ".join(kind for kind, count in counted if count >= SMALL_SHARE * total) or "-"
