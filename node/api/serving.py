"""Listeners and connections: hypercorn's HTTP over sockets that we open, bound and close ourselves.

`hypercorn.trio.serve` lets one connection's unexpected exception end the server, and a client that stops reading block
the shutdown (its sends are shielded); hence its connection class runs here under our own loop.

Resource handling: leaving `serve` closes every connection and listener. Error handling: a connection's error ends that
connection and is logged.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from node.errors import UsageError
from node.home import private_folder

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # libp2p brings trio-stubs, which hide trio's own types

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 400
"""Below the usual limit of 1,024 open files, which peers' connections share."""

IDLE_S = 15.0
"""A connection that has not sent a whole request line and headers, or sits between requests, is closed after this."""

BACKLOG = 128


def listen_tcp(host: str, port: int, option: str) -> socket.socket:
    """A listening TCP socket.

    Raises:
        UsageError: the address is taken or not ours; names the option.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows the option would let two programs share one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        what_now = "choose another port" if taken else "choose an address of this machine"
        raise UsageError(f"{option} {host}:{port}: {error.strerror or error}; {what_now}") from error
    listener.setblocking(False)
    return listener


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket that only its owner can open. The caller holds the home's lock: an old one is stale."""
    private_folder(path.parent)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen at {path}: {error.strerror or error}; set PARALLAX_HOME elsewhere") from error
    listener.setblocking(False)
    return listener


def _config() -> Config:
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.accesslog = None
    config.keep_alive_timeout = IDLE_S
    config.include_server_header = False
    config.h11_max_incomplete_size = 64 * 1024
    return config


async def serve(
    app: ASGIApp, listener: socket.socket, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve `app` on `listener` until cancelled."""
    config, context = _config(), WorkerContext(None)
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
    streams: set[trio.SocketStream] = set()

    async def connection(stream: trio.SocketStream) -> None:
        if len(streams) >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        streams.add(stream)
        try:
            await TCPServer(wrapped, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        except Exception as error:
            log.warning("an HTTP connection ended: %r", error)
        finally:
            streams.discard(stream)
            stream.socket.close()

    async with trio.open_nursery() as nursery:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        try:
            await nursery.start(trio.serve_listeners, connection, listeners)
            task_status.started()
            await trio.sleep_forever()
        finally:
            listener.close()
            for stream in list(streams):
                stream.socket.close()  # also wakes a send that hypercorn shields
