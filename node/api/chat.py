"""`POST /v1/chat/completions`, streamed or whole. A client that goes away stops the generation."""

from __future__ import annotations

from time import perf_counter

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.api.body import Bodies, require_json
from node.api.chat_request import BODY_LIMIT_BYTES, ChatRequest, parse_chat_request
from node.api.disconnect import until_disconnect
from node.api.replies import ChunkWriter, completion, error_body, error_response, sse
from node.api.service import Answer, Service
from node.errors import RequestError

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ChatEndpoint:
    """The route as an ASGI app: it reads `receive` to the end, so that it notices a client that goes away."""

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._service, self._bodies = service, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_s = perf_counter()
        with self._bodies.room() as room:  # until the answer has ended: so long the messages are in memory
            try:
                require_json(scope)
                body = await room.read(scope, receive, BODY_LIMIT_BYTES)
                request = await self._bodies.decoded(parse_chat_request, body)
            except RequestError as error:
                await error_response(error)(scope, receive, send)
                return
            del body
            await until_disconnect(receive, lambda: self._answer(request, arrived_s, scope, receive, send))

    async def _answer(self, request: ChatRequest, arrived_s: float, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with self._service.answer(request, arrived_s) as answer:
                if not request.stream:
                    response = await self._whole(answer)
                    await response(scope, receive, send)
                    return
                writer = ChunkWriter(answer.request_id, answer.model, request.include_usage)
                async for piece in answer.pieces:
                    if not started:  # only now, so that an error before the first text is a status code
                        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                        started = True
                        await _send_part(send, writer.role())
                    if piece.text:
                        await _send_part(send, writer.text(piece.text))
                    if piece.finish is not None:
                        end = writer.end(piece.finish, answer.prompt_tokens, answer.timing)
                        await send({"type": "http.response.body", "body": end, "more_body": False})
        except RequestError as error:
            if started:
                await send({"type": "http.response.body", "body": sse(error_body(error)), "more_body": False})
            else:
                await error_response(error)(scope, receive, send)

    async def _whole(self, answer: Answer) -> Response:
        texts: list[str] = []
        finish = "stop"
        async for piece in answer.pieces:
            texts.append(piece.text)
            finish = piece.finish or finish
        body = completion(answer.request_id, answer.model, "".join(texts), finish, answer.prompt_tokens, answer.timing)
        return Response(msgspec.json.encode(body), media_type="application/json")


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
