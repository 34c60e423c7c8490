"""A blocking client for the control endpoint of this home's node."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from node import __version__
from node.errors import ParallaxError
from node.home import Home
from node.journal.state import State
from parallax_tui.headless.plain_http import asked
from parallax_tui.refusal import refusal

ANSWER_S = 10.0
PLANNING_S = 60.0
"""A plan for a thousand nodes takes some seconds on a slow machine."""


class OtherVersion(ParallaxError):
    """The node answered in a way that this version of the program does not know."""

    def __init__(self, where: str, its_version: str, reason: str) -> None:
        self.where, self.its_version, self.reason = where, its_version, reason
        super().__init__(
            f"the node at {where} is of another version ({its_version or 'unknown'}, this program is {__version__}) "
            f"and cannot be understood: {reason}; stop it and start it again with this version"
        )


class Health(msgspec.Struct, frozen=True):
    """Whether the swarm can answer now."""

    status: str
    version: str = ""
    """Of the node."""
    reason: str = ""
    """Why it cannot, in a sentence."""


class _Invitation(msgspec.Struct):
    token: str


T = TypeVar("T")


def read_state(home: Home) -> State:
    """The running node's state.

    Raises:
        NoNode: none answers for this home.
        NodeRefused: it answered with an error.
        OtherVersion: its answer cannot be understood.
    """
    return _read(home, "GET", "/v1/state", State)


def read_health(home: Home, patience_s: float = 0.0) -> Health:
    """Whether this home's node can answer a question, as soon as it can or after `patience_s`, which is at most some
    seconds; errors as in `read_state`."""
    return _read(home, "GET", f"/health?wait={patience_s:g}" if patience_s else "/health", Health)


def ask_plan(home: Home, changes: object, kind: type[T], *, apply: bool) -> T:
    """What the plan would be with these changes, or is from now on; errors as in `read_state`."""
    return _read(home, "POST", "/v1/plan/apply" if apply else "/v1/plan", kind, changes, PLANNING_S)


def read_invitation(home: Home) -> str:
    """A token that admits its bearer to this node's swarm; errors as in `read_state`."""
    return _read(home, "POST", "/v1/invitation", _Invitation).token


def answers(home: Home) -> bool:
    """Whether this home's node runs and answers."""
    try:
        _request(home, "GET", "/health")
    except ParallaxError:
        return False
    return True


def _read(home: Home, method: str, path: str, kind: type[T], sent: object = None, timeout_s: float = ANSWER_S) -> T:
    body = _request(home, method, path, sent, timeout_s)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        version = "" if kind is Health else read_health(home).version
        raise OtherVersion(home.read_control().where, version, str(error)) from error


def _request(home: Home, method: str, path: str, sent: object = None, timeout_s: float = ANSWER_S) -> bytes:
    with asked(home.read_control(), method, path, sent, answer_s=timeout_s) as answer:
        body = answer.body()
    if answer.status != 200:
        raise refusal(answer.status, body)
    return body
