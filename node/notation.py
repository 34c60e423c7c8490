"""How people write a range of layers and an amount of memory: on command lines, in settings and in requests."""

from __future__ import annotations

import re

from node.errors import UsageError

MOST_LAYERS = 10_000
"""As many as a record or a plan can name."""

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse_layers(text: str, option: str = "--layers") -> tuple[int, int]:
    """`A:B` as the half-open range [A, B).

    Raises:
        UsageError: it is none; names the option.
    """
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text.strip(), re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"{option} {text!r}: write A:B with A < B, such as 0:15 for the first fifteen layers")
    start, end = int(match[1]), int(match[2])
    if end > MOST_LAYERS:
        raise UsageError(f"{option} {text!r}: no model has more than {MOST_LAYERS} layers")
    return start, end


def parse_bytes(text: str, option: str = "--memory") -> int:
    """`6g`, `512M`, `1.5GiB` or plain bytes.

    Raises:
        UsageError: it is none, or nothing at all; names the option.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    amount = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 0 < amount <= 2**53:
        raise UsageError(f"{option} {text!r}: write a size such as 6g or 512m")
    return amount
