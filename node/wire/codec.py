"""Bytes to checked values and back: msgpack for peers, JSON for people and files. No I/O.

Typed decoding is the schema check. Every decoder takes a bound, and says in `BadWireData` what was wrong.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import msgspec

from node.errors import BadWireData

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


@lru_cache(maxsize=64)
def _decoder(kind: type) -> msgspec.msgpack.Decoder[object]:
    return msgspec.msgpack.Decoder(kind)


def encode(value: object) -> bytes:
    """The msgpack form of a wire struct."""
    return _encoder.encode(value)


def decode(data: bytes | bytearray | memoryview, kind: type[T], *, where: str, limit_bytes: int) -> T:
    """A value of `kind` out of untrusted msgpack.

    Raises:
        BadWireData: more than `limit_bytes`, not msgpack, or not of that shape; names `where` and the field.
    """
    if len(data) > limit_bytes:
        raise BadWireData(where, f"{len(data)} bytes, at most {limit_bytes} allowed")
    try:
        return _decoder(kind).decode(data)  # type: ignore[return-value, arg-type]
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BadWireData(where, str(error)) from error
