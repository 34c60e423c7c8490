"""Routes about the model's own words: text to tokens and back, and what its template makes of messages.

Names and replies are those of llama.cpp's server and of vLLM, which have them under the same paths.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio
from msgspec import Raw, Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.api.asking import Chat, Plain
from node.api.dialects.fields import Fields, decoded, is_raw, text_of
from node.api.dialects.openai_messages import messages_of, refuse_too_many
from node.api.dialects.thinking import template_options
from node.api.dialects.tools import tools_of
from node.api.http.body import Bodies, expect_json
from node.api.http.error_replies import error_response
from node.api.routes.generating import BODY_LIMIT_BYTES
from node.api.service import Service
from node.errors import BadRequest, RequestError


class _Tokenise(Struct, frozen=True):
    model: str | None = None
    content: Raw = Raw(b"null")
    prompt: Raw = Raw(b"null")
    messages: Raw = Raw(b"null")
    tools: Raw = Raw(b"null")
    chat_template_kwargs: Raw = Raw(b"null")
    with_pieces: bool | None = None
    return_token_strs: bool | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None


class _Detokenise(Struct, frozen=True):
    tokens: list[int] = []
    model: str | None = None


class _Apply(Struct, frozen=True):
    messages: Raw = Raw(b"null")
    model: str | None = None
    tools: Raw = Raw(b"null")
    chat_template_kwargs: Raw = Raw(b"null")


_TRUE = ((True,), "is not supported")
_TOKENISE = Fields(_Tokenise, neutral={"add_generation_prompt": _TRUE, "parse_special": ((False,), "is not supported")})
_DETOKENISE = Fields(_Detokenise)
_APPLY = Fields(_Apply, neutral={"add_generation_prompt": _TRUE})


class WordsEndpoint:
    """One of the routes, as an ASGI app."""

    def __init__(self, bodies: Bodies, answer: Callable[[bytes], Awaitable[Any]]) -> None:
        self._bodies, self._answer = bodies, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._bodies.room() as room:
            try:
                expect_json(scope)
                told = await self._answer(await room.read(scope, receive, BODY_LIMIT_BYTES))
                response = Response(msgspec.json.encode(told), media_type="application/json")
            except RequestError as error:
                response = error_response(error)
        await response(scope, receive, send)


class Words:
    """What the three routes answer."""

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._service, self._bodies = service, bodies

    async def tokenise(self, body: bytes) -> dict[str, Any]:
        """`/tokenize`: of a text, or of the prompt that messages make."""
        asked, prompt = await self._bodies.decoded(_tokenise, body)
        serving = self._service.served(asked.model or "")
        made = await self._service.prompting.prompted(prompt, serving.chat_model, serving.plan.facts.vocab_size)
        ids = made.ids
        told: dict[str, Any] = {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": serving.chat_model.context_tokens,
        }
        if asked.with_pieces or asked.return_token_strs:
            pieces = await trio.to_thread.run_sync(lambda: [serving.chat_model.piece(token) for token in ids])
            told["token_strs"] = pieces
            if asked.with_pieces:
                told["tokens"] = [{"id": token, "piece": piece} for token, piece in zip(ids, pieces, strict=True)]
        return told

    async def detokenise(self, body: bytes) -> dict[str, Any]:
        """`/detokenize`."""
        _DETOKENISE.check(body)
        asked: _Detokenise = decoded(body, _Detokenise)
        serving = self._service.served(asked.model or "")
        if not asked.tokens:
            return {"content": "", "prompt": ""}
        plain = Plain(tuple(asked.tokens), "tokens")
        made = await self._service.prompting.prompted(plain, serving.chat_model, serving.plan.facts.vocab_size)
        return {"content": made.text, "prompt": made.text}

    async def apply_template(self, body: bytes) -> dict[str, Any]:
        """`/apply-template`: the prompt's text."""
        asked, chat = await self._bodies.decoded(_apply, body)
        serving = self._service.served(asked.model or "")
        return {"prompt": await self._service.prompting.text(chat, serving.chat_model)}


def _tokenise(body: bytes) -> tuple[_Tokenise, Chat | Plain]:
    refuse_too_many(body)
    _TOKENISE.check(body)
    asked: _Tokenise = decoded(body, _Tokenise)
    if not is_raw(asked.messages, b"null"):
        return asked, Chat(messages_of(asked.messages), tools_of(asked.tools), _options(asked))
    if not is_raw(asked.content, b"null"):
        return asked, Plain(text_of(asked.content, "content"), "content", bool(asked.add_special))
    if is_raw(asked.prompt, b"null"):
        raise BadRequest("content", "is missing; send content, prompt or messages")
    return asked, Plain(text_of(asked.prompt, "prompt"), "prompt", asked.add_special_tokens is not False)


def _apply(body: bytes) -> tuple[_Apply, Chat]:
    refuse_too_many(body)
    _APPLY.check(body)
    asked: _Apply = decoded(body, _Apply)
    return asked, Chat(messages_of(asked.messages), tools_of(asked.tools), _options(asked))


def _options(asked: _Tokenise | _Apply) -> dict[str, object]:
    return template_options(asked.chat_template_kwargs)
