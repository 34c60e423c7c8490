"""Every error a person can meet, as one tree.

    ParallaxError
    ├── UsageError              a command line or a setting that cannot be taken
    │   └── ConfigError         the same, in a file: names file and key
    ├── AlreadyRunning          another node holds this home
    ├── NoNode                  no node answers where one was expected
    │   └── NodeSilent          it is there and answers nothing in time
    ├── ModelError
    │   ├── ModelNotFound       neither here nor where it should come from
    │   ├── FetchFailed         the index or the hub did not deliver
    │   ├── WrongHash           delivered, but not the bytes that were promised
    │   ├── DamagedModel        truncated, half written or inconsistent
    │   ├── UnsupportedModel    an architecture or a tensor type we cannot run
    │   └── DiskFull            too little room, told before writing
    ├── EngineError
    │   ├── WorkerDied          the engine worker's process ended
    │   │   └── WorkerHung      it gave no sign of life, and was killed
    │   ├── LoadFailed          the worker could not load its layers
    │   ├── OutOfKV             no room for another sequence's keys and values
    │   └── TooLong             a sequence that may outgrow what the model can be served with in parts
    ├── SwarmError
    │   ├── BadInvitation       a token that does not decode
    │   ├── NotAdmitted         the peer refused us, or we it
    │   ├── LinkClosed          a neighbour's link is gone
    │   └── BadWireData         bytes from a peer that are not what the protocol says
    ├── PlanError
    │   ├── DoesNotFit          the pool's memory is too small: says how much is missing
    │   ├── BadLayers           a range set by hand, or a count of layers, that cannot be served
    │   ├── UnknownObjective    no plan aims at that
    │   ├── BadPool             a figure of a pool, a node or a link that cannot be: names file, key and reason
    │   └── PlanChanged         the plan that a change was made for is no longer in force
    └── RequestError
        ├── BadRequest          the client's fault: HTTP 400, names the parameter
        │   ├── BodyTooLarge    HTTP 413
        │   ├── UnknownEncoding a body compressed in a way that cannot be read: HTTP 415
        │   ├── ModelNotServed  a model that the swarm does not serve: HTTP 404
        │   └── TooManyTokens   the prompt leaves no room in the model's context
        ├── Busy                the node has its hands full: HTTP 503
        ├── NoRoute             layers that nobody serves now: HTTP 503
        ├── HopLost             a hop died while the request ran: HTTP 502
        └── Overloaded          no room for one more request: HTTP 429

A message answers three things: what, where, what to do now. Leaves carry data; `__str__` makes the sentence.
"""

from __future__ import annotations

import errno
import math
import signal
from collections.abc import Sequence

GIB = 1024**3
MIB = 1024**2


def sentence(error: BaseException) -> str:
    """What a person is told of an error that ends a command: ours say it themselves, the system's need their file."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    where = f"{str(error.filename)[:200]}: " if error.filename else ""
    what_now = {
        errno.ENOSPC: "; make room, or set PARALLAX_HOME (or PARALLAX_MODELS) to another disk",
        errno.EDQUOT: "; make room, or set PARALLAX_HOME (or PARALLAX_MODELS) to another disk",
        errno.EROFS: "; set PARALLAX_HOME to a folder that can be written",
        errno.EACCES: "; set PARALLAX_HOME to a folder of yours",
        errno.EMFILE: "; raise the limit of open files with `ulimit -n 1024`",
        errno.EIO: "; the disk or its cable may be failing",
    }.get(error.errno or 0, "")
    return f"{where}{error.strerror or error}{what_now}"


def exit_code(error: BaseException) -> int:
    """What a command ends with."""
    return error.exit_code if isinstance(error, ParallaxError) else 1


class ParallaxError(Exception):
    """Base of all. `exit_code` is what the command line returns when this error ends it."""

    exit_code = 1


class UsageError(ParallaxError):
    """A command line or setting that cannot be taken."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file that cannot be taken; `where` is the file, `key` the entry."""

    def __init__(self, where: str, key: str | None, what: str) -> None:
        self.where, self.key, self.what = where, key, what
        named = f'"{key}" ' if key else ""
        super().__init__(f"{where}: {named}{what}")


class AlreadyRunning(ParallaxError):
    """Another node holds this home."""

    exit_code = 3

    def __init__(self, home: str) -> None:
        self.home = home
        super().__init__(f"a node already runs with the home {home}; stop it, or set PARALLAX_HOME to another folder")


class NoNode(ParallaxError):
    """No node answers where one was expected."""

    exit_code = 4

    def __init__(self, where: str, what_now: str = "start one with `parallax node`") -> None:
        self.where = where
        super().__init__(f"no node answers at {where}; {what_now}")


class NodeSilent(NoNode):
    """A node is there, and has not answered in time: it is busy, or stuck."""

    def __init__(self, where: str) -> None:
        super().__init__(where, "it may be very busy: try again, or stop it and start it again")


class ModelError(ParallaxError):
    """Anything about a model's files."""

    exit_code = 5


class ModelNotFound(ModelError):
    """Neither in the cache nor where it should come from."""

    def __init__(self, model: str, what_now: str) -> None:
        self.model = model
        super().__init__(f"model {model!r} not found; {what_now}")


class FetchFailed(ModelError):
    """The index or the hub did not deliver."""

    def __init__(self, model: str, reason: str) -> None:
        self.model, self.reason = model, reason
        super().__init__(f"could not fetch {model}: {reason}")


class WrongHash(ModelError):
    """The file's SHA-256 is not the promised one."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        self.where, self.expected, self.found = where, expected, found
        super().__init__(f"{where}: SHA-256 is {found}, expected {expected}; the file was removed, try again")


class DamagedModel(ModelError):
    """A file that is truncated, half written or contradicts itself."""

    def __init__(self, where: str, what: str, what_now: str = "fetch or copy it again") -> None:
        self.where, self.what = where, what
        super().__init__(f"{where}: {what}; {what_now}")


class UnsupportedModel(ModelError):
    """An architecture or a tensor type that cannot be run."""

    def __init__(self, where: str, what: str, supported: str) -> None:
        self.where, self.what, self.supported = where, what, supported
        super().__init__(f"{where}: {what} is not supported; supported: {supported}")


class DiskFull(ModelError):
    """Too little room on the disk; told before anything is written."""

    def __init__(self, where: str, needed_bytes: int, free_bytes: int) -> None:
        self.where, self.needed_bytes, self.free_bytes = where, needed_bytes, free_bytes
        super().__init__(
            f"{where}: {needed_bytes / GIB:.2f} GiB needed, {free_bytes / GIB:.2f} GiB free; "
            "make room or set PARALLAX_MODELS to another disk"
        )


class EngineError(ParallaxError):
    """Anything about running layers."""

    exit_code = 6


def how_ended(code: int | None) -> str:
    """How a process ended, as the end of a sentence; `code` is below zero for a signal, None where it is unknown."""
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    killed = "; the system does that where memory runs out: give it less with --memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{killed}"


class WorkerDied(EngineError):
    """The engine worker's process ended; `code` is its exit status, minus the signal's number where one ended it."""

    def __init__(self, code: int | None, last_words: str = "") -> None:
        self.code, self.last_words = code, last_words
        tail = f"; its last words: {last_words}" if last_words else ""
        super().__init__(f"the engine worker {how_ended(code)}{tail}")


class WorkerHung(WorkerDied):
    """The worker gave no sign of life for too long and was killed; `running` is what it was at."""

    def __init__(self, code: int | None, running: str, waited_s: float, last_words: str = "") -> None:
        self.code, self.last_words, self.running, self.waited_s = code, last_words, running, waited_s
        tail = f"; its last words: {last_words}" if last_words else ""
        EngineError.__init__(
            self, f"the engine worker hung and was killed: {running}, and no sign of life for {waited_s:.1f} s{tail}"
        )


class LoadFailed(EngineError):
    """The worker could not load the layers it was given."""

    def __init__(self, layers: str, reason: str) -> None:
        self.layers, self.reason = layers, reason
        super().__init__(f"could not load layers {layers}: {reason}")


class OutOfKV(EngineError):
    """No room for another sequence's keys and values."""

    def __init__(self, needed_tokens: int, free_tokens: int) -> None:
        self.needed_tokens, self.free_tokens = needed_tokens, free_tokens
        super().__init__(f"the KV cache has room for {free_tokens} more tokens, {needed_tokens} needed")


class TooLong(EngineError):
    """A sequence that may become longer than the model can be served with in parts."""

    def __init__(self, tokens: int, most_tokens: int) -> None:
        self.tokens, self.most_tokens = tokens, most_tokens
        super().__init__(
            f"prompt and answer may take {tokens} tokens, but this model's rotary table depends on the length of the "
            f"whole text beyond {most_tokens} tokens, which a chain cannot know; use at most that many"
        )


class SwarmError(ParallaxError):
    """Anything about peers."""

    exit_code = 7


class BadInvitation(SwarmError):
    """An invitation token that does not decode."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"this invitation cannot be read ({reason}); copy the whole line that `parallax invite` printed"
        )


class NotAdmitted(SwarmError):
    """A peer without our swarm's secret, or a swarm whose secret we lack.

    `refused` is False where the connection merely ended before it came to that, as one of two that cross does.
    """

    def __init__(self, peer: str, reason: str, *, refused: bool = True) -> None:
        self.peer, self.reason, self.refused = peer, reason, refused
        super().__init__(f"not admitted with {peer}: {reason}")


class LinkClosed(SwarmError):
    """The link to a neighbour is gone."""

    def __init__(self, peer: str, reason: str) -> None:
        self.peer, self.reason = peer, reason
        super().__init__(f"the link to {peer} is closed: {reason}")


class BadWireData(SwarmError):
    """Bytes from a peer that are not what the protocol says; the peer loses its connection."""

    def __init__(self, where: str, what: str) -> None:
        self.where, self.what = where, what
        super().__init__(f"{where}: {what}")


class PlanError(ParallaxError):
    """No plan can be made."""

    exit_code = 2


def amount(missing_bytes: int) -> str:
    """Rounded up, so that this much is enough."""
    unit, name = (GIB, "GiB") if missing_bytes >= GIB else (MIB, "MiB")
    return f"{max(0.01, math.ceil(missing_bytes / unit * 100) / 100):.2f} {name}"


class DoesNotFit(PlanError):
    """The pool's memory is too small for the model."""

    def __init__(self, model: str, missing_bytes: int) -> None:
        self.model, self.missing_bytes = model, missing_bytes
        super().__init__(
            f"{model} does not fit: {amount(missing_bytes)} missing; with one more machine that has so much memory for "
            "the model it would fit; or let the nodes use more of theirs, or choose a smaller model"
        )


class NotCovered(PlanError):
    """Nobody can hold some layers now, for who may is set by hand or others are away."""


class BadLayers(PlanError):
    """A layer range set by hand that cannot be served."""

    def __init__(self, layers: str, reason: str) -> None:
        self.layers, self.reason = layers, reason
        super().__init__(f"layers {layers}: {reason}")


class UnknownObjective(PlanError):
    """Nothing that a plan can aim at has this name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        super().__init__(f"objective {name[:40]!r} is unknown; choose one of {', '.join(known)}")


class BadPool(PlanError):
    """A figure that cannot be; `where` is the file or the node, `key` the entry."""

    def __init__(self, where: str, key: str, reason: str) -> None:
        self.where, self.key, self.reason = where, key, reason
        super().__init__(f'{where}: "{key}": {reason}')


class PlanChanged(PlanError):
    """A change of the plan came too late: another plan is in force than the one it was made for."""

    def __init__(self, made_for: int, in_force: int) -> None:
        self.made_for, self.in_force = made_for, in_force
        super().__init__(
            f"the change was made for plan {made_for}, and plan {in_force} is in force now; look at it and ask again"
        )


class RequestError(ParallaxError):
    """One request cannot be served. `status` is the HTTP status, `kind` the error type in its body."""

    exit_code = 8
    status = 500
    kind = "server_error"


class BadRequest(RequestError):
    """The client's fault; `param` names the offending field."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, param: str | None, what: str) -> None:
        self.param, self.what = param, what
        super().__init__(f"{param}: {what}" if param else what)


class BodyTooLarge(BadRequest):
    """A body that is larger than any that can be answered."""

    status = 413

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(None, f"the body is larger than {limit_bytes} bytes")


class UnknownEncoding(BadRequest):
    """A body that is compressed in a way that cannot be read."""

    status = 415

    def __init__(self, encoding: str, readable: Sequence[str] = ("gzip",)) -> None:
        self.encoding = encoding
        super().__init__(
            None, f"the body's content-encoding is {encoding!r}; send it as {', '.join(readable)}, or uncompressed"
        )


class ModelNotServed(BadRequest):
    """A model asked for by name that is not the one that is served; `name` is as it may be repeated."""

    status = 404

    def __init__(self, name: str, served: str) -> None:
        self.name, self.served = name, served
        super().__init__("model", f"this swarm serves {served!r}, not {name}")


class TooManyTokens(BadRequest):
    """A prompt that leaves no room for an answer in the model's context."""

    def __init__(self, param: str, prompt_tokens: int, context_tokens: int, *, at_least: bool = False) -> None:
        self.prompt_tokens, self.context_tokens = prompt_tokens, context_tokens
        self.figure = f"{'at least ' if at_least else ''}{prompt_tokens} tokens"
        super().__init__(
            param,
            f"{self.figure} leave no room in the model's context of {context_tokens}; its maximum context length is "
            f"{context_tokens} tokens",
        )


class Busy(RequestError):
    """The node reads, renders or serves as much as it can; a moment later it can again."""

    status = 503
    kind = "overloaded"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class NoRoute(RequestError):
    """Some layers are served by nobody at present."""

    status = 503

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class NoRoom(NoRoute):
    """Some layers are on nodes whose KV caches are full."""


class HopLost(RequestError):
    """A hop died, or reported that it cannot go on, while the request ran."""

    status = 502

    def __init__(self, node_name: str, layers: str, reason: str) -> None:
        self.node_name, self.layers, self.reason = node_name, layers, reason
        super().__init__(f"node {node_name} (layers {layers}) was lost during the request: {reason}; try again")


class Overloaded(RequestError):
    """No room for one more request."""

    status = 429
    kind = "overloaded"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
