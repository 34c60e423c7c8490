"""A chat completion's body, checked at the door. What we cannot honour is refused by name, never ignored."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from node.api.chat_fields import HARMLESS, HONOURED, NEUTRAL, is_neutral, unknown
from node.errors import BadRequest
from node.wire.frames import Sampling

BODY_LIMIT_BYTES = 8 * 1024 * 1024
"""Several times the text of a 128k-token context."""

MOST_MESSAGES = 4096
"""A chat of so many turns has filled any context long ago, and each costs some time to check."""

MOST_PARTS = 4096
"""Of all messages together."""

MAX_STOPS = 16

NO_LIMIT = 10_000_000
"""More tokens than any context has. Clients of other programs write -1 for it."""

SMALL_BYTES = 64 * 1024
"""Of a field that we do not honour: nobody sends more where it is off."""

SHOWN_CHARACTERS = 80

ROLES = ("system", "developer", "user", "assistant")
TOOL_ROLES = ("tool", "function")

T = TypeVar("T")


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


class _StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(Struct, frozen=True):
    """The honoured fields. Messages are taken apart one by one, after they have been counted."""

    messages: Raw = Raw(b"null")
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


_AllFields = msgspec.defstruct(
    "_AllFields",
    [(name, Raw, Raw(b"null")) for name in sorted({*HONOURED, *HARMLESS, *NEUTRAL})],
    frozen=True,
    forbid_unknown_fields=True,
)
"""Every name that a body may have, with its value as it was written."""


class _Message(Struct, frozen=True, forbid_unknown_fields=True):
    role: Raw = Raw(b'""')
    content: Raw = Raw(b"null")
    # texts that the model's own template may use
    name: Raw = Raw(b"null")
    reasoning_content: Raw = Raw(b"null")
    # what servers put into answers and clients send back, and what concerns caches
    annotations: Raw = Raw(b"null")
    id: Raw = Raw(b"null")
    cache_control: Raw = Raw(b"null")
    provider_specific_fields: Raw = Raw(b"null")
    # taken while they are empty
    tool_calls: Raw = Raw(b"null")
    tool_call_id: Raw = Raw(b"null")
    function_call: Raw = Raw(b"null")
    audio: Raw = Raw(b"null")
    refusal: Raw = Raw(b"null")
    images: Raw = Raw(b"null")
    prefix: Raw = Raw(b"null")
    partial: Raw = Raw(b"null")


MESSAGE_TO_TEMPLATE = ("name", "reasoning_content")
MESSAGE_OFF = ("tool_calls", "tool_call_id", "function_call", "audio", "refusal", "images", "prefix", "partial")
OFF = (b"null", b"[]", b"{}", b'""', b"false")


class _Part(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str
    cache_control: Any = None
    """Concerns caches only."""
    annotations: Any = None
    """Of an answer that is sent back."""


def shown(value: object) -> str:
    """A value from outside as a message may repeat it: never whole where it is long."""
    text = repr(value[: SHOWN_CHARACTERS + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def parse_chat_request(body: bytes) -> ChatRequest:
    """Check a body. Takes up to some tens of milliseconds for a large one.

    Raises:
        BadRequest: with the parameter's name and what is wrong with it.
    """
    # Only a key or a value is written so: in a longer text the quotation marks are escaped. Counting comes first, since
    # a body of nothing but small messages takes forty times as long to decode as to count.
    if body.count(b'"role"') > 2 * MOST_MESSAGES:
        raise _too_many_messages()
    _refuse_what_is_not_honoured(_fields(body))
    asked = _decoded(body, _Body)
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= 1000 for stop in stops):
        raise BadRequest("stop", f"at most {MAX_STOPS} texts of 1 to 1,000 characters")
    return ChatRequest(
        model=asked.model or "",
        messages=_messages(asked.messages),
        stream=bool(asked.stream),
        include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        max_tokens=_max_tokens(asked),
        stop=stops,
        temperature=_within("temperature", asked.temperature, 0.0, 2.0),
        top_p=_within("top_p", asked.top_p, 0.0, 1.0, above=True),
        top_k=0 if asked.top_k == -1 else _whole_within("top_k", asked.top_k, 0, 1_000_000),
        seed=_seed(asked.seed),
    )


def _fields(body: bytes) -> Struct:
    """Every field as it was written; stops at the first unknown one, however many there are."""
    try:
        return msgspec.json.decode(body, type=_AllFields)
    except msgspec.ValidationError as error:
        name = _unknown_field(error)
        if name is None:
            raise BadRequest(None, "the body is not a JSON object") from error
        raise BadRequest(name[:SHOWN_CHARACTERS], unknown(name)) from error
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors, as is invalid UTF-8
        raise BadRequest(None, f"the body is not JSON: {error}") from error


def _refuse_what_is_not_honoured(fields: Struct) -> None:
    for name, (neutral, reason) in NEUTRAL.items():
        raw: Raw = getattr(fields, name)
        if _is(raw, b"null"):
            continue
        if memoryview(raw).nbytes > SMALL_BYTES or not is_neutral(_decoded(raw, Any), neutral):
            raise BadRequest(name, reason)


def _unknown_field(error: msgspec.ValidationError) -> str | None:
    _, said, name = str(error).partition("unknown field `")
    return name.partition("` - at")[0].removesuffix("`") if said else None


def _decoded(body: bytes | Raw, kind: type[T] | Any, at: str = "") -> Any:
    """`body` as `kind`; `at` is where it stands."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        what, _, path = str(error).partition(" - at `")
        place = at + path.rstrip("`").removeprefix("$").removeprefix("" if at else ".")
        raise BadRequest(place.partition("[")[0] if not at else place, _for_people(what)) from error


def _for_people(what: str) -> str:
    """`Expected `int | null`, got `str`` as clients say it."""
    for kind, word in (
        ("int", "a whole number"),
        ("float", "a number"),
        ("bool", "true or false"),
        ("str", "text"),
        ("object", "an object"),
        ("array", "a list"),
        ("array | str", "text or a list of texts"),
        ("str | array", "text or a list of texts"),
    ):
        for expected in (f"Expected `{kind} | null`", f"Expected `{kind}`"):
            if what.startswith(expected + ","):
                return f"must be {word}"
    return what[: 2 * SHOWN_CHARACTERS]


def _within(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> float | None:
    if value is not None and (not low <= value <= high or (above and value == low)):
        raise BadRequest(
            name, f"must be {'above' if above else 'at least'} {low:g} and at most {high:g}, not {shown(value)}"
        )
    return value


def _whole_within(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not low <= value <= high:
        raise BadRequest(name, f"must be at least {low} and at most {high}, not {shown(value)}")
    return value


def _seed(given: int | None) -> int:
    """A given seed as is (negative ones wrap), a fresh one otherwise."""
    seed = _whole_within("seed", given, -(2**63), 2**63 - 1)
    return secrets.randbits(63) if seed is None else seed % 2**63


def _max_tokens(asked: _Body) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        given: int | None = getattr(asked, name)
        if given is not None:
            return NO_LIMIT if given == -1 else _whole_within(name, given, 1, NO_LIMIT)
    return None


def _too_many_messages() -> BadRequest:
    return BadRequest("messages", f"more than {MOST_MESSAGES} are not taken")


def _messages(raw: Raw) -> list[dict[str, str]]:
    if not _begins(raw, b"["):
        raise BadRequest("messages", "must be a list with at least one message")
    each_raw: list[Raw] = _decoded(raw, list[Raw], "messages")
    if not each_raw:
        raise BadRequest("messages", "must be a list with at least one message")
    if len(each_raw) > MOST_MESSAGES:
        raise _too_many_messages()
    parts_left = MOST_PARTS
    messages: list[dict[str, str]] = []
    for index, each in enumerate(each_raw):
        message, parts = _message(f"messages[{index}]", each, parts_left)
        messages.append(message)
        parts_left -= parts
    return messages


def _message(where: str, raw: Raw, parts_left: int) -> tuple[dict[str, str], int]:
    """The message as templates take it, and of how many parts it was."""
    if not _begins(raw, b"{"):
        raise BadRequest(where, "must be an object with role and content")
    try:
        fields = msgspec.json.decode(raw, type=_Message)
    except (ValueError, RecursionError) as error:
        name = _unknown_field(error) if isinstance(error, msgspec.ValidationError) else None
        place = f"{where}.{name[:SHOWN_CHARACTERS]}" if name is not None else where
        raise BadRequest(place, "is not known here; a message has role and content") from error
    role = _text(fields.role, f"{where}.role")
    if role in TOOL_ROLES:
        raise BadRequest(f"{where}.role", "tools are not supported")
    if role not in ROLES:
        raise BadRequest(f"{where}.role", f"must be one of {', '.join(ROLES)}, not {shown(role)}")
    for name in MESSAGE_OFF:
        if not any(_is(getattr(fields, name), off) for off in OFF):
            raise BadRequest(f"{where}.{name}", "is not supported")
    content, parts = _content(fields.content, role, f"{where}.content", parts_left)
    message = {"role": "system" if role == "developer" else role, "content": content}
    for name in MESSAGE_TO_TEMPLATE:
        if not _is(value := getattr(fields, name), b"null"):
            message[name] = _text(value, f"{where}.{name}")
    return message, parts


def _text(raw: Raw, where: str) -> str:
    if not _begins(raw, b'"'):
        raise BadRequest(where, "must be text")
    text: str = _decoded(raw, str, where)
    return text


def _content(raw: Raw, role: str, where: str, parts_left: int) -> tuple[str, int]:
    """The text, and of how many parts it was. An assistant's may be null: it called a tool, or was cut at once."""
    match bytes(memoryview(raw)[:1]):
        case b'"':
            return _text(raw, where), 0
        case b"n" if role == "assistant":
            return "", 0
        case b"[":
            parts: list[Raw] = _decoded(raw, list[Raw], where)
            if len(parts) > parts_left:
                raise BadRequest(where, f"more than {MOST_PARTS} parts are not taken")
            return "".join(_part(part, where) for part in parts), len(parts)
    raise BadRequest(where, "must be text")


def _part(raw: Raw, where: str) -> str:
    try:
        return msgspec.json.decode(raw, type=_Part).text
    except (ValueError, RecursionError) as error:
        raise BadRequest(where, "only parts of type text are supported") from error


def _begins(raw: Raw, mark: bytes) -> bool:
    return memoryview(raw)[:1] == mark


def _is(raw: Raw, value: bytes) -> bool:
    return memoryview(raw) == value
