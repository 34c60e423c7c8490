"""One HTTP/1.1 connection: h11 reads and writes the protocol, an ASGI app answers, and the client is never waited for
without an end.

Every wait for the client has its deadline: `IDLE_S` for a whole head, `WRITE_S` for each piece that we write. A request
that is being answered has none here: its route knows how long that may take. The connection is closed as soon as either
side wants it closed, or one of them has broken the protocol.

Resource handling: the caller closes the stream. Error handling: what the client does wrong ends the connection; what
the app raises is logged, and told as a 500 where nothing has been told yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11
import trio
from starlette.types import ASGIApp, Message

log = logging.getLogger(__name__)

IDLE_S = 15.0
"""A connection that has not sent a whole request line and headers, or sits between requests, is closed after this."""

WRITE_S = 10.0
"""A client that takes nothing of what we write for so long does not read any more."""

LINGER_S = 1.0
"""So long what the client still sends is read and dropped: closing earlier could take our last words from it."""

HEAD_LIMIT_BYTES = 64 * 1024
READ_BYTES = 64 * 1024
WRITE_BYTES = 16 * 1024
"""The write deadline is for progress by so much, not for all of a long answer."""

BUFFERED_LIMIT_BYTES = 256 * 1024
"""Of what a client may send ahead while its request is answered."""


class HttpConnection:
    """Serves one client until it or we have had enough."""

    def __init__(self, app: ASGIApp, stream: trio.abc.Stream, client: tuple[str, int] | None = None) -> None:
        self.waiting_since_s: float | None = None
        """Since when we wait for the client, to send or to take; None while it waits for us."""
        self._app, self._stream, self._client = app, stream, client
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT_BYTES)

    async def run(self) -> None:
        """One request after the other."""
        try:
            while await self._one_request():
                self._http.start_next_cycle()
            await self._say_goodbye()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the client has gone

    async def refuse(self, status: int, body: bytes, retry_after_s: int) -> None:
        """Answer without reading a request: there is no room for one more client."""
        headers = [("content-type", "application/json"), ("retry-after", str(retry_after_s))]
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        text = f"HTTP/1.1 {status} Busy\r\n{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        try:
            await self._write(text.encode() + body)
            await self._say_goodbye()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _one_request(self) -> bool:
        """Whether another one may follow."""
        try:
            request = await self._head()
            if request is not None and not request.http_version.startswith(b"1."):
                version = request.http_version.decode("ascii", "replace")
                raise h11.RemoteProtocolError(f"HTTP/{version}", error_status_hint=505)
        except h11.RemoteProtocolError as error:
            await self._refuse_what_is_no_http(error)
            return False
        if request is None:
            return False
        exchange = _Exchange(self, request)
        try:
            await self._app(exchange.scope(self._client), exchange.receive, exchange.send)
        except Exception as error:  # a door: whatever a route does wrong ends this connection and nothing else
            if _client_has_gone(error):
                return False
            log.exception("%s %s failed", exchange.method, exchange.path[:200])
            if self._http.our_state is not h11.SEND_RESPONSE:
                return False
            await exchange.send({"type": "http.response.start", "status": 500, "headers": [(b"connection", b"close")]})
            await exchange.send({"type": "http.response.body"})
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _head(self) -> h11.Request | None:
        """The next request's line and headers; None where the client has no more, or has not sent it in time."""
        with trio.move_on_after(IDLE_S):
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    return event
                if event is not h11.NEED_DATA:
                    return None
                await self.read()
        return None

    async def read(self) -> None:
        """Take in what the client has sent; at its end, note that."""
        with self._waiting():
            self._http.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))

    async def read_ahead(self) -> None:
        """The same while it is answered: there the client waits for us."""
        self._http.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))

    async def write(self, event: h11.Event) -> None:
        """Send what the event says.

        Raises:
            trio.BrokenResourceError: the client takes nothing any more.
        """
        data = self._http.send(event)
        if data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        pieces = memoryview(data)
        for start in range(0, len(pieces), WRITE_BYTES):
            with trio.move_on_after(WRITE_S) as patience, self._waiting():
                await self._stream.send_all(pieces[start : start + WRITE_BYTES])
            if patience.cancelled_caught:
                raise trio.BrokenResourceError(f"the client has taken nothing for {WRITE_S:.0f} s")

    async def _refuse_what_is_no_http(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"this is not HTTP/1.1: {error}\n".encode()
        headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body)))]
        headers.append(("connection", "close"))
        await self.write(h11.Response(status_code=error.error_status_hint, headers=headers))
        await self.write(h11.Data(data=body))
        await self.write(h11.EndOfMessage())

    async def _say_goodbye(self) -> None:
        """End our side, and let the client read what we said: unread bytes at a close would take it back."""
        if not isinstance(self._stream, trio.SocketStream):
            return
        await self._stream.send_eof()
        with trio.move_on_after(LINGER_S), self._waiting():
            while await self._stream.receive_some(READ_BYTES):
                pass

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        before, self.waiting_since_s = self.waiting_since_s, trio.current_time()
        try:
            yield
        finally:
            self.waiting_since_s = before

    @property
    def http(self) -> h11.Connection:
        """The protocol's state."""
        return self._http


class _Exchange:
    """One request and its answer, in ASGI's terms."""

    def __init__(self, connection: HttpConnection, request: h11.Request) -> None:
        self.method = request.method.decode("ascii", "replace").upper()
        raw_path, _, self._query = request.target.partition(b"?")
        self.path = unquote(raw_path.decode("ascii", "replace"))
        self._connection, self._request, self._raw_path = connection, request, raw_path
        self._body_read = False

    def scope(self, client: tuple[str, int] | None) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._request.http_version.decode(),
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self._raw_path,
            "query_string": self._query,
            "root_path": "",
            "headers": [(bytes(name), bytes(value)) for name, value in self._request.headers],
            "client": client,
            "server": None,
            "state": {},
        }

    async def receive(self) -> Message:
        """The next part of the body; after it, that the client has gone."""
        http = self._connection.http
        if self._body_read:
            await self._until_gone()
            return {"type": "http.disconnect"}
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                if http.they_are_waiting_for_100_continue:
                    await self._connection.write(h11.InformationalResponse(status_code=100, headers=[]))
                await self._connection.read()
        except (h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._body_read = True
            return {"type": "http.disconnect"}
        if isinstance(event, h11.Data):
            return {"type": "http.request", "body": bytes(event.data), "more_body": True}
        self._body_read = True
        if isinstance(event, h11.EndOfMessage):
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def _until_gone(self) -> None:
        """What the client sends meanwhile is its next request; reading it is how its end is seen."""
        http = self._connection.http
        if http.their_state is h11.ERROR:
            return
        try:
            while True:
                ahead, ended = http.trailing_data
                if ended:
                    return
                if len(ahead) > BUFFERED_LIMIT_BYTES:
                    await trio.sleep_forever()
                await self._connection.read_ahead()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        connection = self._connection
        if message["type"] == "http.response.start":
            self._drop_the_rest()
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", [])]
            headers.append((b"date", formatdate(usegmt=True).encode()))
            if connection.http.their_state is not h11.DONE:  # an answer before the body was read: nobody reads it now
                headers = [*(each for each in headers if each[0].lower() != b"connection"), (b"connection", b"close")]
            status = message["status"]
            await connection.write(h11.Response(status_code=status, headers=headers, reason=_REASONS.get(status, b"")))
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body and self.method != "HEAD":
                await connection.write(h11.Data(data=body))
            if not message.get("more_body", False):
                await connection.write(h11.EndOfMessage())

    def _drop_the_rest(self) -> None:
        """Of a body that the app did not want, what is here already: a short one does not cost the connection."""
        try:
            while not self._body_read:
                event = self._connection.http.next_event()
                if isinstance(event, h11.EndOfMessage):
                    self._body_read = True
                elif not isinstance(event, h11.Data):
                    return
        except h11.RemoteProtocolError:
            self._body_read = True


_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


def _client_has_gone(error: BaseException) -> bool:
    """Whether nothing else is wrong; the nurseries of a route put errors into groups."""
    if isinstance(error, BaseExceptionGroup):
        return all(_client_has_gone(each) for each in error.exceptions)
    return isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError | trio.Cancelled)
