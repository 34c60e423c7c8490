"""What a dialect must be able to do. The route that runs one knows nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from node.api.asking import Ask, Ended
from node.api.gathering import Gathered
from node.api.service import Answer
from node.api.speech.said import Said
from node.errors import RequestError

SSE = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"


class Form(Protocol):
    """How one answer is written. Used for one answer, either whole or as a stream."""

    media_type: str
    """Of the stream."""
    keep_alive: bytes
    """What clients read over while nothing comes; empty: the form has no such thing."""

    def whole(self, answer: Answer, choices: list[Gathered]) -> Any:
        """A whole answer, as JSON."""

    def begin(self, answer: Answer) -> bytes:
        """A stream begins: some token has come."""

    def said(self, choice: int, said: Said) -> bytes:
        """More of one choice."""

    def ended(self, choice: int, ended: Ended) -> bytes:
        """One choice is whole."""

    def end(self) -> bytes:
        """All of them are."""

    def failed(self, error: RequestError) -> bytes:
        """The stream ends in an error; it may not even have begun."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body that was taken apart."""

    ask: Ask
    form: Form
    stream: bool


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error as a dialect writes it."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Dialect(Protocol):
    """One way to ask."""

    def parse(self, body: bytes) -> Asked:
        """Take a body apart. Raises BadRequest."""

    def error(self, error: RequestError, request_id: str) -> ErrorReply:
        """An error, as this dialect's clients read it."""
