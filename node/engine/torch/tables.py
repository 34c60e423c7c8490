"""Where a model's rotary table depends on the length of the whole text, and from which length on.

With `dynamic` and `longrope` scaling the library takes the longest position of one call for the text's length and makes
its table from that. A prompt in chunks, or a decode step, would then be turned by another table than the same prompt in
one piece. Up to the length that the model was trained with, the table is one and the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def longest_with_one_table(config: Any) -> int | None:
    """Tokens up to which every chunk and every step is turned by the same table; None where that is always so."""
    lengths = [_trained_length(config, parameters) for parameters in _tables(config) if _depends_on_length(parameters)]
    return min(lengths, default=None)


def _tables(config: Any) -> Iterator[dict[str, Any]]:
    """The rotary parameters of a config: of the model, or of each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return
    kinds = [value for value in parameters.values() if isinstance(value, dict)]
    yield from kinds or [parameters]


def _depends_on_length(parameters: dict[str, Any]) -> bool:
    kind = str(parameters.get("rope_type") or parameters.get("type") or "")
    return "dynamic" in kind or kind == "longrope"


def _trained_length(config: Any, parameters: dict[str, Any]) -> int:
    kind = str(parameters.get("rope_type") or parameters.get("type"))
    trained = parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    # `dynamic` grows its table beyond the config's own length, whatever else is said
    if "dynamic" in kind or not trained:
        trained = config.max_position_embeddings
    return int(trained)
