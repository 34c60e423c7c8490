"""One node's HTTP API, over its unix socket or loopback TCP.

Resources: an `async with` block owns the connections. Cancelling a task that reads a stream closes its connection,
which is how a running generation is stopped.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TypeVar

import httpx
import msgspec

from node.errors import NoNode, ParallaxError
from node.home import Control
from node.journal.state import State
from node.wire.events import Numbered
from parallax_tui.client.sse import SseParser
from parallax_tui.refusal import NodeRefused, refusal

CONNECT_S = 5.0
"""A node on this machine that accepts nothing for so long is stuck."""
SILENCE_S = 25.0
"""The event stream has a keep-alive every ten seconds; so much silence means that the node hangs."""
DONE = "[DONE]"

T = TypeVar("T")

_state = msgspec.json.Decoder(State)
_numbered = msgspec.json.Decoder(Numbered)


class EventsGone(ParallaxError):
    """The events asked for are no longer kept: read the state again."""


class _ModelEntry(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry]


class NodeClient:
    """A client of the node that `control` points to.

    Every method raises `NoNode` where nothing answers and `NodeRefused` where the answer is an error.
    """

    def __init__(self, control: Control) -> None:
        self.where = control.where
        # no certificates to load: the node speaks plain HTTP on this machine only
        transport = httpx.AsyncHTTPTransport(uds=control.socket_path, verify=False, trust_env=False)
        self._http = httpx.AsyncClient(
            transport=transport,
            base_url="http://node" if control.socket_path else f"http://127.0.0.1:{control.port}",
            headers={"authorization": f"Bearer {control.token}"} if control.token else {},
            timeout=httpx.Timeout(CONNECT_S, read=SILENCE_S),
            trust_env=False,  # a proxy must never see this machine's own traffic
        )

    async def __aenter__(self) -> NodeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def state(self) -> State:
        """The node's whole state now."""
        async with self._answers():
            reply = await self._http.get("/v1/state")
            _check(reply, reply.content)
            return _decoded(_state, reply.content, self.where)

    async def models(self) -> list[str]:
        """The names under which models can be asked."""
        async with self._answers():
            reply = await self._http.get("/v1/models")
            _check(reply, reply.content)
            return [entry.id for entry in _decoded(msgspec.json.Decoder(_ModelList), reply.content, self.where).data]

    async def events(self, since: int) -> AsyncGenerator[Numbered, None]:
        """Events after number `since`, then new ones as they come, until the node goes away.

        Raises:
            EventsGone: the node no longer keeps them.
        """
        async with self._answers(), self._http.stream("GET", "/v1/events", params={"since": since}) as reply:
            if reply.status_code == httpx.codes.GONE:
                raise EventsGone(f"events after {since} are no longer kept")
            if reply.is_error:
                _check(reply, await reply.aread())
            async for line in reply.aiter_lines():
                if line:
                    yield _decoded(_numbered, line.encode(), self.where)

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], **settings: object
    ) -> AsyncGenerator[str, None]:
        """A streamed answer: the JSON text of each chunk. `settings` are further fields of the request."""
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings,
        }
        # no limit between chunks: a long prompt on a slow machine takes minutes, and a person can stop it
        timeout = httpx.Timeout(CONNECT_S, read=None)
        request = self._http.stream("POST", "/v1/chat/completions", json=body, timeout=timeout)
        async with self._answers(), request as reply:
            if reply.is_error:
                _check(reply, await reply.aread())
            parser = SseParser()
            async for line in reply.aiter_lines():
                data = parser.feed(line)
                if data == DONE:
                    return
                if data is not None:
                    yield data

    @asynccontextmanager
    async def _answers(self) -> AsyncIterator[None]:
        """Turns the transport's many errors into one."""
        try:
            yield
        except httpx.TransportError as error:
            raise NoNode(self.where) from error
        except (httpx.DecodingError, httpx.InvalidURL) as error:
            raise NodeRefused(502, f"{self.where}: {error}") from error


def _check(reply: httpx.Response, body: bytes) -> None:
    if reply.is_error:
        raise refusal(reply.status_code, body)


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes, where: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise NodeRefused(
            502, f"{where}: not understood ({error}); the node and this program are of different versions?"
        ) from error
