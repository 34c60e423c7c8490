"""Errors as responses."""

from __future__ import annotations

import secrets

import msgspec
from starlette.responses import Response

from node.api.dialects.base import ErrorReply
from node.api.dialects.openai_errors import openai_error
from node.errors import RequestError


def error_response(error: RequestError) -> Response:
    """In OpenAI's form, which our own routes speak too."""
    return reply(openai_error(error, unserved_id()))


def reply(error: ErrorReply) -> Response:
    """In any form."""
    return Response(msgspec.json.encode(error.body), error.status, dict(error.headers), "application/json")


def unserved_id() -> str:
    """Of a request that came to no answer: what its client may tell and nobody else has."""
    return f"req_{secrets.token_hex(12)}"
