"""Compressed bodies, expanded no further than they may be long."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

from node.errors import BadRequest, BodyTooLarge

PIECE_BYTES = 256 * 1024
"""Of a compressed body at a time."""

GZIP_WINDOW = 31
"""For zlib: the largest window, with gzip's header."""

ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""A frame that asks for more memory than this is refused, as the format advises."""


@cache
def readable() -> tuple[str, ...]:
    """The encodings that can be read here; zstd where a library for it is installed."""
    return ("gzip",) if _zstd() is None else ("gzip", "zstd")


def expanded(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """The body before it was compressed.

    Raises:
        BodyTooLarge: it is longer than `limit_bytes`.
        BadRequest: it is not of that encoding, or ends too early.
    """
    try:
        return _gunzipped(body, limit_bytes) if encoding == "gzip" else _from_zstd(body, limit_bytes)
    except (zlib.error, EOFError, ValueError, OSError) as error:
        raise BadRequest(None, f"the body cannot be read as {encoding}: {str(error)[:100]}") from error


def _gunzipped(body: bytes, limit_bytes: int) -> bytes:
    machine = zlib.decompressobj(GZIP_WINDOW)
    whole = machine.decompress(body, limit_bytes + 1)
    if len(whole) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if not machine.eof:
        raise EOFError("it ends too early")
    return whole


def _from_zstd(body: bytes, limit_bytes: int) -> bytes:
    zstandard = _zstd()
    machine = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    whole = bytearray()
    try:
        with machine.stream_reader(body) as reader:
            while piece := reader.read(min(PIECE_BYTES, limit_bytes + 1 - len(whole))):
                whole += piece
                if len(whole) > limit_bytes:
                    raise BodyTooLarge(limit_bytes)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return bytes(whole)


def _zstd() -> Any:
    """The library, where it is there."""
    try:
        import zstandard  # optional: few clients compress, and those that do take gzip too
    except ImportError:
        return None
    return zstandard
