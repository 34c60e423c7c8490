"""What dialects share in taking a body apart: every name is honoured, changes nothing, or is refused; never dropped."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from node.errors import BadRequest

SMALL_BYTES = 64 * 1024
"""Of a field that we do not honour: nobody sends more where it is off."""

SHOWN_CHARACTERS = 80
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 1000
MOST_NESTING = 64
"""Of lists and objects in what a template is given. Schemas of tools have a dozen."""

OFF: tuple[object, ...] = (False, 0, "", [], {})
UNSUPPORTED = "is not supported"

Neutral = Mapping[str, tuple[tuple[object, ...], str]]
"""Values that ask for what we do anyway, by name; any other one is refused with this reason."""

T = TypeVar("T")


class Fields:
    """The names of one dialect."""

    def __init__(
        self,
        honoured: type[Struct],
        *,
        harmless: Collection[str] = (),
        neutral: Neutral | None = None,
        also_known: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        honoured: the fields that are taken apart.
        harmless: taken with any value: they change nothing in an answer.
        also_known: names that other programs have for what is honoured under another one.
        """
        self._neutral, self._also_known = neutral or {}, also_known or {}
        own = [spec.encode_name for spec in msgspec.structs.fields(honoured)]
        self.names = sorted({*own, *harmless, *self._neutral})
        self.refusals = {name: reason for name, (_, reason) in self._neutral.items()}
        """Why, by the names of those that are refused unless they are off."""
        self._all = msgspec.defstruct(
            "_AllFields", [(name, Raw, Raw(b"null")) for name in self.names], frozen=True, forbid_unknown_fields=True
        )

    def check(self, body: bytes | Raw, at: str = "") -> None:
        """Refuse what is not honoured. `at` is where the body stands, with its dot.

        Raises:
            BadRequest: it is no JSON object, or names what is not known, or asks for what cannot be done.
        """
        fields = self._fields(body, at)
        for name, (neutral, reason) in self._neutral.items():
            raw: Raw = getattr(fields, name)
            if is_raw(raw, b"null"):
                continue
            if memoryview(raw).nbytes > SMALL_BYTES or not is_neutral(decoded(raw, Any, at + name), neutral):
                raise BadRequest(at + name, reason)

    def _fields(self, body: bytes | Raw, at: str) -> Struct:
        """Every field as it was written; stops at the first unknown one, however many there are."""
        try:
            return msgspec.json.decode(body, type=self._all)
        except msgspec.ValidationError as error:
            name = unknown_field(error)
            if name is None:
                raise BadRequest(at.rstrip(".") or None, "must be an object" if at else _NO_OBJECT) from error
            raise BadRequest(at + name[:SHOWN_CHARACTERS], self._unknown(name)) from error
        except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors, as is invalid UTF-8
            raise BadRequest(at.rstrip(".") or None, f"the body is not JSON: {error}") from error

    def _unknown(self, name: str) -> str:
        """What to say of a name that is not known: the one that may have been meant."""
        if name in self._also_known:
            return f"is not known here; use {self._also_known[name]}"
        near = get_close_matches(name[:100], self.names, n=1, cutoff=0.75)
        return f"is not known here; did you mean {near[0]}?" if near else "is not known here"


_NO_OBJECT = "the body is not a JSON object"


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether the value is one of these; 0 is no false and 1 no true, 0.0 and 0 are equal."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def unknown_field(error: Exception) -> str | None:
    """The name that a struct does not have, where that is what was wrong."""
    _, said, name = str(error).partition("unknown field `")
    return name.partition("` - at")[0].removesuffix("`") if said else None


def shown(value: object) -> str:
    """A value from outside as a message may repeat it: never whole where it is long."""
    text = repr(value[: SHOWN_CHARACTERS + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def decoded(body: bytes | Raw, kind: type[T] | Any, at: str = "") -> Any:
    """`body` as `kind`; `at` is where it stands.

    Raises:
        BadRequest: it is something else.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        what, _, path = str(error).partition(" - at `")
        place = at + path.rstrip("`").removeprefix("$").removeprefix("" if at else ".")
        raise BadRequest(place.partition("[")[0] if not at else place, _for_people(what)) from error


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_EXPECTED = re.compile(r"Expected `([a-z| ]+)`, got")


def _for_people(what: str) -> str:
    """`Expected `int | null`, got `str`` as clients say it."""
    match = _EXPECTED.match(what)
    kinds = [kind for kind in match[1].split(" | ") if kind != "null"] if match is not None else []
    if kinds and all(kind in _WORDS for kind in kinds):
        return "must be " + " or ".join(_WORDS[kind] for kind in sorted(kinds, reverse=True))
    return what[: 2 * SHOWN_CHARACTERS]


def within(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> float | None:
    """A number in its range, or none. Raises BadRequest."""
    if value is not None and (not low <= value <= high or (above and value == low)):
        raise BadRequest(
            name, f"must be {'above' if above else 'at least'} {low:g} and at most {high:g}, not {shown(value)}"
        )
    return value


def whole_within(name: str, value: int | None, low: int, high: int) -> int | None:
    """The same for whole numbers. Raises BadRequest."""
    if value is not None and not low <= value <= high:
        raise BadRequest(name, f"must be at least {low} and at most {high}, not {shown(value)}")
    return value


def seed_of(given: int | None, name: str = "seed") -> int:
    """A given seed as is (negative ones wrap), a fresh one otherwise. Raises BadRequest."""
    seed = whole_within(name, given, -(2**63), 2**63 - 1)
    return secrets.randbits(63) if seed is None else seed % 2**63


def stops_of(given: str | list[str] | None, name: str = "stop") -> tuple[str, ...]:
    """Texts that end an answer. Raises BadRequest."""
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stops) > MOST_STOPS or any(not 0 < len(stop) <= MOST_STOP_CHARACTERS for stop in stops):
        raise BadRequest(name, f"at most {MOST_STOPS} texts of 1 to {MOST_STOP_CHARACTERS:,} characters")
    return stops


def begins(raw: Raw, mark: bytes) -> bool:
    """Whether a value as it was written begins so."""
    return memoryview(raw)[: len(mark)] == mark


def is_raw(raw: Raw, value: bytes) -> bool:
    """Whether a value was written exactly so."""
    return memoryview(raw) == value


def absent(raw: Raw) -> bool:
    """Whether there is no such value, or it is off."""
    return any(is_raw(raw, off) for off in (b"null", b"[]", b"{}", b'""', b"false"))


def text_of(raw: Raw, where: str) -> str:
    """A JSON text. Raises BadRequest."""
    if not begins(raw, b'"'):
        raise BadRequest(where, "must be text")
    text: str = decoded(raw, str, where)
    return text


def object_of(raw: Raw, where: str) -> dict[str, Any]:
    """A JSON object that is nested no deeper than templates can take it. Raises BadRequest."""
    if not begins(raw, b"{"):
        raise BadRequest(where, "must be an object")
    value: dict[str, Any] = decoded(raw, dict[str, Any], where)
    require_shallow(value, where)
    return value


def require_shallow(value: object, where: str) -> None:
    """Raises BadRequest where lists and objects are nested too deep."""
    level = [value]
    for _ in range(MOST_NESTING):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise BadRequest(where, f"is nested deeper than {MOST_NESTING} levels")
