"""OpenAI's form of errors, and the codes that its clients look for."""

from __future__ import annotations

from node.api.dialects.base import ErrorReply
from node.errors import ModelNotServed, NoRoute, Overloaded, RequestError, TooManyTokens

RETRY_AFTER_S = {429: "2", 503: "2"}
"""A request in the line moves about once a second; a plan takes a few."""

NOT_SERVED = "model_not_found"
TOO_LONG = "context_length_exceeded"


def openai_code(error: RequestError) -> str | None:
    """What a program tells apart by."""
    match error:
        case ModelNotServed():
            return NOT_SERVED
        case TooManyTokens():
            return TOO_LONG
        case RequestError() if error.status < 429:
            return None
        case Overloaded():
            return "rate_limit_exceeded"
        case NoRoute():
            return "service_unavailable"
    return "overloaded" if error.status == 503 else "server_error"


def openai_error(error: RequestError, request_id: str = "") -> ErrorReply:
    """What an OpenAI client turns into an exception."""
    body = {
        "message": str(error),
        "type": error.kind,
        "param": getattr(error, "param", None),
        "code": openai_code(error),
    }
    headers = {"retry-after": RETRY_AFTER_S[error.status]} if error.status in RETRY_AFTER_S else {}
    if request_id:
        headers["x-request-id"] = request_id
    return ErrorReply(error.status, {"error": body}, headers)
