"""How people write a range of layers and an amount of memory: on command lines, in settings and in requests."""

from __future__ import annotations

import re

from node.errors import UsageError

MOST_LAYERS = 10_000
"""As many as a record or a plan can name."""

LEAST_BYTES = 1024**2
"""A smaller number of bytes is a larger one of something else, whose unit was left out."""

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse_layers(text: str, option: str = "--layers") -> tuple[int, int]:
    """`A–B`, both included, as ranges are shown (`0-14` will do), or half-open `A:B`: as [start, end).

    Raises:
        UsageError: it is none; names the option.
    """
    match = re.fullmatch(r"(\d{1,5})\s*([-–:])\s*(\d{1,5})", text.strip(), re.ASCII)
    start, end = (int(match[1]), int(match[3]) + (match[2] != ":")) if match else (0, 0)
    if start >= end:
        raise UsageError(f"{option} {text!r}: write A-B, such as 0-14 (or 0:15) for the first fifteen layers")
    if end > MOST_LAYERS:
        raise UsageError(f"{option} {text!r}: no model has more than {MOST_LAYERS} layers")
    return start, end


def parse_bytes(text: str, option: str = "--memory") -> int:
    """`6g`, `512M`, `1.5GiB`, or bytes where that is what they can be.

    Raises:
        UsageError: it is none, nothing at all, or a small number without a unit; names the option.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    amount = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if match and not match[2] and 0 < amount < LEAST_BYTES:
        meant = f"{match[1]}{'g' if amount < 256 else 'm'}"
        raise UsageError(f"{option} {text[:40]!r}: that is {amount} bytes; did you mean {meant}?")
    if not 0 < amount <= 2**53:
        raise UsageError(f"{option} {text[:40]!r}: write a size such as 6g or 512m")
    return amount


def parse_origin(text: str, option: str = "--cors") -> str:
    """A web origin such as `http://nas:3000` or `app://notes`, or `*` for all, in lower case.

    Raises:
        UsageError: it is none; names the option.
    """
    origin = text.strip().lower().removesuffix("/")
    if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]{0,31}://[^/?#@\s\\]{1,260}", origin):
        raise UsageError(f"{option} {text[:100]!r}: write an origin such as http://nas:3000, without a path")
    return origin


def parse_host_name(text: str, option: str = "--allow-host") -> str:
    """A host's name or address as it stands in a request, without the port, in lower case.

    Raises:
        UsageError: it is none; names the option.
    """
    name = text.strip().lower().removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}", name):
        raise UsageError(f"{option} {text[:100]!r}: write a name such as nas.local, without a port")
    return name
