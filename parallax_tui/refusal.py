"""A node's answer that is an error, as a sentence: what the client of the screens and the blocking one share."""

from __future__ import annotations

import msgspec

from node.errors import ParallaxError

SHOWN_BYTES = 200
"""Of a body that is not the node's own kind of error."""


class NodeRefused(ParallaxError):
    """The node answered with an error; `status` is the HTTP status, the message is the node's own."""

    exit_code = 8

    def __init__(self, status: int, message: str, missing_bytes: int | None = None) -> None:
        self.status, self.missing_bytes = status, missing_bytes
        super().__init__(message)


class _Error(msgspec.Struct):
    message: str = ""
    missing_bytes: int | None = None


class _Body(msgspec.Struct):
    error: _Error


def refusal(status: int, body: bytes) -> NodeRefused:
    """The error that a reply with this status and body tells."""
    try:
        told = msgspec.json.decode(body, type=_Body).error
    except (msgspec.DecodeError, UnicodeError):
        told = _Error(body[:SHOWN_BYTES].decode(errors="replace").strip())
    message = told.message or f"the node answered with HTTP {status} and no reason"
    return NodeRefused(status, message, told.missing_bytes)
