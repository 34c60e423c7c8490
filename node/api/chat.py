"""`POST /v1/chat/completions`, streamed or whole. A client that goes away stops the generation."""

from __future__ import annotations

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from node.api.chat_request import BODY_LIMIT_BYTES, ChatRequest, parse_chat_request
from node.api.disconnect import until_disconnect
from node.api.replies import ChunkWriter, completion, error_body, sse
from node.api.service import Answer, Service
from node.errors import BadRequest, RequestError

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


BODY_S = 30.0
"""For a whole body, from a client on this machine or its network; one that stalls must not keep its connection."""


async def read_body(receive: Receive) -> bytes:
    """The request's body.

    Raises:
        BadRequest: larger than `BODY_LIMIT_BYTES`, or not there within `BODY_S`.
    """
    with trio.move_on_after(BODY_S):
        return await _whole_body(receive)
    raise BadRequest(None, f"the body did not arrive within {BODY_S:.0f} s")


async def _whole_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest(None, "the client went away")
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT_BYTES:
            raise BadRequest(None, f"the body is larger than {BODY_LIMIT_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def error_response(error: RequestError) -> Response:
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(error_body(error), error.status, headers)


class ChatEndpoint:
    """The route as an ASGI app: it reads `receive` to the end, so that it notices a client that goes away."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            _require_json(scope)
            request = parse_chat_request(await read_body(receive))
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await until_disconnect(receive, lambda: self._answer(request, scope, receive, send))

    async def _answer(self, request: ChatRequest, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with self._service.answer(request) as answer:
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


def _require_json(scope: Scope) -> None:
    """A web form cannot say application/json without asking first, so this also stops cross-site posts."""
    kind = Request(scope).headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest(None, f"the content type is {kind or 'missing'}, application/json is needed")
