"""HTTP to a node on this machine for commands that ask a little and leave, with what Python brings.

A command answers within a second or not at all: a library for the whole of HTTP takes a quarter of that to import, and
here there is neither TLS, nor a proxy, nor a redirection. Nothing of the network's environment counts: no proxy may see
the token of a loopback port.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from node.errors import NodeSilent, NoNode
from node.home import Control

CONNECT_S = 5.0
"""A node on this machine that accepts nothing for so long is stuck."""

MOST_BYTES = 64 * 1024 * 1024
"""Of one answer: the state of a swarm of a thousand nodes takes some megabytes."""


class NodeUnreached(NoNode):
    """Nothing has taken the question: it may be asked again."""


class _Connection(http.client.HTTPConnection):
    """To a unix socket, or a port of this machine."""

    def __init__(self, control: Control, answer_s: float | None) -> None:
        super().__init__("127.0.0.1" if control.port is not None else "node", control.port, timeout=CONNECT_S)
        self._socket_path, self._answer_s = control.socket_path, answer_s

    def connect(self) -> None:
        if self._socket_path is None:
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(CONNECT_S)
            self.sock.connect(self._socket_path)
        self.sock.settimeout(self._answer_s)


class Answer:
    """A node's answer, of which the head has come."""

    def __init__(self, response: http.client.HTTPResponse, where: str) -> None:
        self.status = response.status
        self._response, self._where = response, where

    def body(self) -> bytes:
        """All of it; errors as in `asked`."""
        with _told_as_ours(self._where):
            body = self._response.read(MOST_BYTES + 1)
        if len(body) > MOST_BYTES:
            raise NoNode(self._where, f"what answers there sent more than {MOST_BYTES} bytes, as no node does")
        return body

    def lines(self) -> Iterator[bytes]:
        """Line by line as they come, without their ends; errors as in `asked`."""
        while True:
            with _told_as_ours(self._where):
                line = self._response.readline(MOST_BYTES)
            if not line:
                return
            yield line.rstrip(b"\r\n")


@contextmanager
def asked(control: Control, method: str, path: str, sent: object = None, *, answer_s: float | None) -> Iterator[Answer]:
    """Ask a node; the connection ends with the block, which is how an answer under way is stopped.

    Args:
        sent: sent as JSON; None: no body.
        answer_s: how long nothing may come; None: any time.

    Raises:
        NodeUnreached: nothing takes the question there.
        NodeSilent: it has taken it and said nothing for `answer_s`.
        NoNode: the connection broke.
    """
    connection = _Connection(control, answer_s)
    headers = {"Authorization": f"Bearer {control.token}"} if control.token else {}
    if sent is not None:
        headers["Content-Type"] = "application/json"
    try:
        try:
            connection.connect()
        except OSError as error:
            raise NodeUnreached(control.where) from error
        with _told_as_ours(control.where):
            connection.request(method, path, None if sent is None else json.dumps(sent).encode(), headers)
            response = connection.getresponse()
        yield Answer(response, control.where)
    finally:
        connection.close()


@contextmanager
def _told_as_ours(where: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise NodeSilent(where) from error
    except (OSError, http.client.HTTPException) as error:
        raise NoNode(where) from error
