"""A chat completion's body, checked at the door. What we cannot honour is refused by name, never ignored."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import msgspec

from node.errors import BadRequest
from node.wire.frames import Sampling

BODY_LIMIT_BYTES = 8 * 1024 * 1024
"""Several times the text of a 128k-token context."""

MAX_STOPS = 16
DEFAULT_MAX_TOKENS = 1024
"""For clients that name no limit: a small model that loops ends in a minute, and `length` says why."""

REFUSED = {
    "tools": "tools are not supported",
    "functions": "functions are not supported",
    "logprobs": "logprobs are not supported",
    "top_logprobs": "logprobs are not supported",
    "logit_bias": "logit_bias is not supported",
    "frequency_penalty": "frequency_penalty is not supported",
    "presence_penalty": "presence_penalty is not supported",
    "audio": "audio is not supported",
}
"""Fields that would change the answer; zero, false and empty values are what we do anyway."""

ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that can be honoured."""

    model: str
    messages: list[dict[str, str]]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int

    def sampling(self, temperature: float, top_p: float, top_k: int) -> Sampling:
        """What was asked for, and the given figures where nothing was."""
        return Sampling(
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=top_p if self.top_p is None else self.top_p,
            top_k=top_k if self.top_k is None else self.top_k,
            seed=self.seed,
        )


def parse_chat_request(body: bytes) -> ChatRequest:
    """Check a body.

    Raises:
        BadRequest: with the parameter's name and what is wrong with it.
    """
    try:
        fields = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors, as is invalid UTF-8
        raise BadRequest(None, f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest(None, "the body is not a JSON object")
    for name, reason in REFUSED.items():
        if fields.get(name):
            raise BadRequest(name, reason)
    if fields.get("n", 1) not in (1, None):
        raise BadRequest("n", f"only 1 answer per request is supported, not {fields['n']!r}")
    if fields.get("tool_choice") not in (None, "none", "auto"):
        raise BadRequest("tool_choice", "tools are not supported")
    response_format = fields.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        raise BadRequest("response_format", 'only {"type": "text"} is supported')
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("stream_options", "must be an object")
    return ChatRequest(
        model=_text(fields, "model"),
        messages=_messages(fields.get("messages")),
        stream=_flag(fields, "stream"),
        include_usage=_flag(options or {}, "include_usage"),
        max_tokens=_max_tokens(fields),
        stop=_stops(fields.get("stop")),
        temperature=_number(fields, "temperature", 0.0, 2.0),
        top_p=_number(fields, "top_p", 0.0, 1.0, above=True),
        top_k=_whole(fields, "top_k", 0, 1_000_000),
        seed=_seed(fields),
    )


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(name, "must be text")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(name, "must be true or false")
    return bool(value)


def _number(fields: dict[str, Any], name: str, low: float, high: float, *, above: bool = False) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(name, "must be a number")
    if not low <= value <= high or (above and value == low):
        raise BadRequest(
            name, f"must be {'above' if above else 'at least'} {low:g} and at most {high:g}, not {value!r}"
        )
    return float(value)


def _whole(fields: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(name, "must be a whole number")
    if not low <= value <= high:
        raise BadRequest(name, f"must be at least {low} and at most {high}, not {value}")
    return value


def _seed(fields: dict[str, Any]) -> int:
    """A given seed as is (negative ones wrap), a fresh one otherwise."""
    seed = _whole(fields, "seed", -(2**63), 2**63 - 1)
    return secrets.randbits(63) if seed is None else seed % 2**63


def _max_tokens(fields: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if (limit := _whole(fields, name, 1, 10_000_000)) is not None:
            return limit
    return None


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest("stop", "must be text or a list of texts")
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= 1000 for stop in stops):
        raise BadRequest("stop", f"at most {MAX_STOPS} texts of 1 to 1,000 characters")
    return tuple(stops)


def _messages(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages", "must be a list with at least one message")
    return [_message(index, message) for index, message in enumerate(value)]


def _message(index: int, message: object) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise BadRequest(where, "must be an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise BadRequest(f"{where}.role", f"must be one of {', '.join(ROLES)}, not {role!r}")
    return {"role": "system" if role == "developer" else role, "content": _content(where, message.get("content"))}


def _content(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts: list[str] = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRequest(f"{where}.content", "only parts of type text are supported")
            texts.append(part["text"])
        return "".join(texts)
    raise BadRequest(f"{where}.content", "must be text")
