"""Sockets that listen: on an address, on both loopbacks, or on a path that only its owner can open."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from node.errors import UsageError

BACKLOG = 128
PORTS_TRIED = 20
LOOPBACKS = ("127.0.0.1", "::1")


class NotListening(UsageError):
    """An address that cannot be listened at; `number` is the system's errno."""

    def __init__(self, message: str, number: int | None) -> None:
        self.number = number
        super().__init__(message)


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
        raise NotListening(f"{option} {host}:{port}: {error.strerror or error}; {what_now}", error.errno) from error
    listener.setblocking(False)
    return listener


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket that only its owner can open.

    The caller holds the home's lock, so an old one is stale, and has made the folder, which nobody else can enter.
    """
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


def listen_localhost(port: int, option: str, ports_tried: int = PORTS_TRIED) -> list[socket.socket]:
    """Sockets on one port of all loopbacks that this machine has: programs look for `localhost` at either.

    Args:
        port: the first one to try; 0: any that is free.
        option: of the command line, for messages.
        ports_tried: so many in a row, while another program has one of them.

    Raises:
        UsageError: none of them is free, or the machine has no loopback address.
    """
    problem: UsageError | None = None
    for tried in range(port, port + ports_tried) if port else [0] * ports_tried:
        if tried > 65535:
            break
        try:
            return _on_all(tried, option)
        except NotListening as error:
            problem = problem or error  # of the first port: that one was asked for
            if error.number not in (errno.EADDRINUSE, errno.EACCES):
                break
    assert problem is not None
    raise problem


def _on_all(port: int, option: str) -> list[socket.socket]:
    """One port of each loopback that there is; the second one follows the first where any port will do."""
    listeners: list[socket.socket] = []
    missing: NotListening | None = None
    for host in LOOPBACKS:
        try:
            listeners.append(listen_tcp(host, port, option))
            port = listeners[0].getsockname()[1]
        except NotListening as error:
            if error.number not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
                close_all(listeners)
                raise
            missing = missing or error
    if not listeners:
        assert missing is not None
        raise NotListening(
            f"{option}: neither {' nor '.join(LOOPBACKS)} is an address of this machine, so nothing here could reach "
            f"the API; bring the loopback interface up, or choose `{option} off`",
            missing.number,
        )
    return listeners


def close_all(listeners: Sequence[socket.socket]) -> None:
    """Give the ports back."""
    for listener in listeners:
        listener.close()
