"""Listeners, and how many connections there may be on them.

Where there are as many as there may be, the one that keeps us waiting longest gives way to a new one: those that say
nothing, or take nothing of what we say, can never lock out one that does. Where all are at work, a new one is told so.

Resource handling: leaving `serve` closes every connection and listener. Error handling: a connection's error ends that
connection and is logged.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio
from starlette.types import ASGIApp

from node.api.http.http_connection import HttpConnection
from node.open_files import open_files_limit

if TYPE_CHECKING:
    from node.task_status import TaskStatus

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 400
SHARE_OF_FILES = 3
"""One in so many of the files that this process may open: peers' connections, models and logs need theirs."""

GIVES_WAY_AFTER_S = 1.0
"""A client that has kept us waiting for less may be as fast as its network allows."""

AT_THE_DOOR, ROOM_S = 50, 0.5
"""So many wait so long for room before they are told that there is none; more than these are dropped."""

RETRY_AFTER_S = 2

FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PASSING = (errno.ECONNABORTED, errno.EPERM, errno.EPROTO)
"""Of accept(2): this connection came to nothing, the next one may."""

FULL_PAUSE_S = 0.2
FULL_TOLD_EVERY_S = 60.0


def most_connections() -> int:
    """On one port."""
    return max(4, min(MOST_CONNECTIONS, open_files_limit() // SHARE_OF_FILES))


async def serve(
    app: ASGIApp,
    listeners: Sequence[socket.socket],
    most: int | None = None,
    task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until cancelled, with at most `most` connections on all of these together."""
    try:
        async with trio.open_nursery() as nursery:
            port = _Port(app, most_connections() if most is None else most)
            for listener in listeners:
                accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                nursery.start_soon(port.accept, accepting, nursery)
            task_status.started()
    finally:
        for listener in listeners:
            listener.close()


class _Port:
    """The connections that there are."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most
        self._open: dict[HttpConnection, trio.CancelScope] = {}
        self._at_the_door = 0
        self._ended = trio.Event()
        """One of them has ended."""
        self._full_told_s = float("-inf")

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Take connections in, each with a task of its own."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno in FULL:
                    await self._out_of_files(error)
                elif error.errno not in PASSING:
                    raise
                continue
            nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = HttpConnection(self._app, stream, _client_of(stream))
        try:
            if self._has_room():
                await self._run(connection)
            elif self._at_the_door < AT_THE_DOOR:
                self._at_the_door += 1
                try:
                    with trio.move_on_after(ROOM_S):
                        while not self._has_room():
                            await self._ended.wait()
                    if not self._has_room():
                        await connection.refuse(503, _BUSY, RETRY_AFTER_S)
                        return
                finally:
                    self._at_the_door -= 1
                await self._run(connection)
        except Exception as error:  # a door: one connection's error must not end the others
            log.warning("an HTTP connection ended: %r", error)
        finally:
            await trio.aclose_forcefully(stream)

    async def _run(self, connection: HttpConnection) -> None:
        """Serve it; between asking for room and this nothing else may happen."""
        try:
            with trio.CancelScope() as scope:
                self._open[connection] = scope
                await connection.run()
        finally:
            self._open.pop(connection, None)
            self._ended.set()
            self._ended = trio.Event()

    def _has_room(self) -> bool:
        return len(self._open) < self._most or self._one_gives_way()

    def _one_gives_way(self, after_s: float = GIVES_WAY_AFTER_S) -> bool:
        """Whether a client that keeps us waiting was found; its connection ends."""
        longest: HttpConnection | None = None
        since_s = trio.current_time() - after_s
        for connection in self._open:
            if connection.waiting_since_s is not None and connection.waiting_since_s <= since_s:
                longest, since_s = connection, connection.waiting_since_s
        if longest is None:
            return False
        self._open.pop(longest).cancel()
        return True

    async def _out_of_files(self, error: OSError) -> None:
        if trio.current_time() - self._full_told_s > FULL_TOLD_EVERY_S:
            self._full_told_s = trio.current_time()
            log.warning("no HTTP connection can be taken in: %s; raise the limit of open files", error.strerror)
        self._one_gives_way(0.0)
        await trio.sleep(FULL_PAUSE_S)


_BUSY = json.dumps(
    {
        "error": {
            "message": "this node serves as many connections as it can; try again in a moment",
            "type": "overloaded",
            "param": None,
            "code": "Busy",
        }
    }
).encode()


def _client_of(stream: trio.SocketStream) -> tuple[str, int] | None:
    try:
        name = stream.socket.getpeername()
    except OSError:
        return None
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
