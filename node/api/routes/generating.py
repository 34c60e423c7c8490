"""The route that generates, in any dialect, streamed or whole. A client that goes away stops the generation."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.api.asking import Ended
from node.api.dialects.base import Asked, Dialect
from node.api.gathering import gathered
from node.api.http.body import Bodies, expect_json
from node.api.http.disconnect import until_disconnect
from node.api.http.error_replies import reply, unserved_id
from node.api.http.streaming import EventStream, event_stream
from node.api.http.whereabouts import route_headers, timing_headers
from node.api.service import Answer, Service
from node.errors import RequestError

BODY_LIMIT_BYTES = 8 * 1024 * 1024
"""Several times the text of a 128k-token context."""


class GeneratingEndpoint:
    """The route as an ASGI app: it reads `receive` to the end, so that it notices a client that goes away."""

    def __init__(self, service: Service, bodies: Bodies, dialect: Dialect) -> None:
        self._service, self._bodies, self._dialect = service, bodies, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.unless(lambda body: None, scope, receive, send)

    async def unless(
        self, at_once: Callable[[bytes], Response | None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """The same, unless there is a reply to this body for which nothing is to be generated."""
        arrived_s = perf_counter()
        with self._bodies.room() as room:  # until the answer has ended: so long the messages are in memory
            try:
                expect_json(scope)
                body = await room.read(scope, receive, BODY_LIMIT_BYTES)
                if (response := at_once(body)) is not None:
                    await response(scope, receive, send)
                    return
                asked = await self._bodies.decoded(self._dialect.parse, body)
            except RequestError as error:
                await reply(self._dialect.error(error, unserved_id()))(scope, receive, send)
                return
            del body
            await until_disconnect(receive, lambda: self._answer(asked, arrived_s, scope, receive, send))

    async def _answer(self, asked: Asked, arrived_s: float, scope: Scope, receive: Receive, send: Send) -> None:
        if not asked.stream:
            response = await self._whole(asked, arrived_s)
            await response(scope, receive, send)
            return
        failure: RequestError | None = None
        async with event_stream(send, asked.form.media_type, asked.form.keep_alive) as stream:
            try:
                async with self._service.answer(asked.ask, arrived_s) as answer:
                    await self._streamed(asked, answer, stream)
            except RequestError as error:
                if stream.begun:
                    await stream.end(asked.form.failed(error))
                    return
                failure = error
            except Exception:  # a door: told to the client here, and to the log by the connection
                if stream.begun:
                    await stream.end(asked.form.failed(RequestError("the node failed; its log has the details")))
                raise
        if failure is not None:  # a status code says more than an event in a stream
            await reply(self._dialect.error(failure, unserved_id()))(scope, receive, send)

    async def _streamed(self, asked: Asked, answer: Answer, stream: EventStream) -> None:
        form = asked.form
        begun = False
        async for choice, said in answer.events:
            part = b""
            if not begun:
                begun = True
                stream.headers = answer_headers(answer)
                part = form.begin(answer)
            part += form.ended(choice, said) if isinstance(said, Ended) else form.said(choice, said)
            if part:
                await stream.send(part)
        await stream.end(form.end())

    async def _whole(self, asked: Asked, arrived_s: float) -> Response:
        try:
            async with self._service.answer(asked.ask, arrived_s) as answer:
                choices = await gathered(answer.events, len(answer.timings))
        except RequestError as error:
            return reply(self._dialect.error(error, unserved_id()))
        body = msgspec.json.encode(asked.form.whole(answer, choices))
        headers = {name.decode(): value.decode("latin-1") for name, value in answer_headers(answer, whole=True)}
        return Response(body, media_type="application/json", headers=headers)


def answer_headers(answer: Answer, *, whole: bool = False) -> list[tuple[bytes, bytes]]:
    """What a client, or the person who reads its log, may want to know of where an answer comes from."""
    request_id = answer.request_id.encode()
    return [
        (b"x-request-id", request_id),
        (b"request-id", request_id),
        *route_headers(answer.timings[0]),
        *timing_headers(answer, whole=whole),
    ]
