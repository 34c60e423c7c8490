"""Ollama's routes about models: which are served, what they can do, and one fetched with its progress told."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
from msgspec import Raw, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from node.api.dialects.fields import Fields, decoded, is_raw, shown, text_of
from node.api.dialects.ollama import LATEST, model_name
from node.api.dialects.ollama_form import line, ollama_error
from node.api.http.body import Bodies, expect_json
from node.api.http.disconnect import until_disconnect
from node.api.http.error_replies import reply, unserved_id
from node.api.http.guard import Forbidden
from node.api.http.owner import Owner
from node.api.http.streaming import event_stream
from node.api.service import Service
from node.errors import BadRequest, Busy, ParallaxError, RequestError
from node.models.child import OnProgress, identify_in_child, prepare_in_child
from node.models.default_model import DEFAULT_NAME
from node.models.facts import layer_count
from node.models.progress import Phase

SPOKEN_VERSION = "0.12.0"
"""The version of Ollama whose dialect this is: some clients ask, and refuse one that is too old."""

BODY_LIMIT_BYTES = 64 * 1024
HUB_NAME = re.compile(r"(?:hf\.co/|huggingface\.co/)?(\w[\w.\-]{0,95}/\w[\w.\-]{0,95}(?:@[\w.\-/]{1,96})?)")
PROGRESS_EVERY_S = 0.25


class _Named(Struct, frozen=True):
    model: Raw = Raw(b"null")
    name: Raw = Raw(b"null")
    stream: bool | None = None


NAMED = Fields(_Named, harmless=("verbose", "insecure", "username", "password", "options", "keep_alive"))


class OllamaModels:
    """Handlers of the routes."""

    def __init__(self, service: Service, bodies: Bodies, owner: Owner) -> None:
        self._service, self._bodies, self._owner = service, bodies, owner
        self._fetching = False

    async def version(self, request: Request) -> Response:
        """`GET /api/version`."""
        return JSONResponse({"version": SPOKEN_VERSION})

    async def tags(self, request: Request) -> Response:
        """`GET /api/tags`: what can be asked for."""
        return JSONResponse({"models": self._models()})

    async def ps(self, request: Request) -> Response:
        """`GET /api/ps`: what is loaded, which is the same."""
        until = (datetime.now(UTC) + timedelta(days=365)).isoformat().replace("+00:00", "Z")
        loaded = [{**model, "expires_at": until, "size_vram": 0} for model in self._models()]
        chat_model = self._service.here.chat_model()
        for model in loaded:
            del model["modified_at"]
            model["context_length"] = chat_model.context_tokens if chat_model is not None else 0
        return JSONResponse({"models": loaded})

    async def show(self, body: bytes) -> dict[str, Any]:
        """`POST /api/show`."""
        served = self._service.served(_named(body)[0])
        chat_model, facts = served.chat_model, served.plan.facts
        abilities = [
            "completion",
            *(["tools"] if chat_model.speech.takes_tools else []),
            *(["thinking"] if chat_model.speech.thinks else []),
        ]
        return {
            "modelfile": f"FROM {served.plan.model.name}\n",
            "parameters": "",
            "template": chat_model.template or "",
            "modified_at": self._since(),
            "details": self._details(),
            "model_info": {
                "general.architecture": "parallax",
                "general.name": served.plan.model.name,
                "parallax.context_length": chat_model.context_tokens,
                "parallax.block_count": facts.layers,
                "parallax.embedding_length": facts.hidden_size,
                "parallax.vocab_size": facts.vocab_size,
            },
            "capabilities": abilities,
        }

    async def embed(self, body: bytes) -> dict[str, Any]:
        """`POST /api/embed`."""
        raise no_embedder(self._service)

    # --- fetching ---------------------------------------------------------------------------------------------------

    async def pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /api/pull`, an ASGI app: a client that goes away ends the fetching."""
        request = Request(scope, receive)
        try:
            with self._bodies.room() as room:
                expect_json(scope)
                name, stream = _named(await room.read(scope, receive, BODY_LIMIT_BYTES))
            if not self._owner.may_fetch(request.headers):
                raise Forbidden(
                    "fetching models is for the node's owner; use `parallax models pull` on its machine, or send the "
                    f"token in {self._owner.token_file} as `Authorization: Bearer TOKEN`"
                )
            choice = _fetchable(name)
            if self._fetching:
                raise Busy("a model is being fetched already; try again when it is here")
        except RequestError as error:
            await reply(ollama_error(error, unserved_id()))(scope, receive, send)
            return
        self._fetching = True
        try:
            await until_disconnect(receive, lambda: self._pull(choice, send, quiet=not stream))
        finally:
            self._fetching = False

    async def _pull(self, choice: str, send: Send, *, quiet: bool) -> None:
        async with event_stream(send, "application/x-ndjson", b"") as stream:
            news, told = trio.open_memory_channel[dict[str, Any]](1)

            def progress(phase: Phase, done_bytes: int, total_bytes: int, text: str) -> None:
                told_now: dict[str, Any] = {"status": f"{phase} {text}".strip()}
                if total_bytes:
                    told_now |= {"digest": text or phase, "total": total_bytes, "completed": done_bytes}
                with suppress(trio.WouldBlock):  # the client reads slowly, or was told a moment ago
                    news.send_nowait(told_now)

            async def tell() -> None:
                async for each in told:
                    if not quiet:
                        await stream.send(line(each))
                    await trio.sleep(PROGRESS_EVERY_S)

            last: dict[str, Any] = {"status": "success"}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell)
                try:
                    await fetch(choice, self._service.here.models_folder(), progress)
                except (ParallaxError, OSError) as error:
                    last = {"error": str(error)}
                news.close()  # what is being written comes to its end
            await stream.end(line(last))

    # --- what is told -----------------------------------------------------------------------------------------------

    def _models(self) -> list[dict[str, Any]]:
        plan = self._service.here.plan()
        if plan is None:
            return []
        name = plan.model.name
        return [
            {
                "name": f"{name}{LATEST}",
                "model": f"{name}{LATEST}",
                "modified_at": self._since(),
                "size": plan.facts.layers * plan.facts.layer_bytes + plan.facts.embedding_bytes + plan.facts.head_bytes,
                "digest": plan.model.digest,
                "details": self._details(),
            }
        ]

    def _since(self) -> str:
        return datetime.fromtimestamp(self._service.started_s, UTC).isoformat().replace("+00:00", "Z")

    def _details(self) -> dict[str, Any]:
        plan = self._service.here.plan()
        dtype = plan.dtype if plan is not None else ""
        return {
            "parent_model": "",
            "format": "parallax",
            "family": "parallax",
            "families": ["parallax"],
            "parameter_size": "",
            "quantization_level": str(dtype),
        }


class OllamaEndpoint:
    """One of the routes that take a body, as an ASGI app."""

    def __init__(self, bodies: Bodies, answer: Callable[[bytes], Any], limit_bytes: int = BODY_LIMIT_BYTES) -> None:
        self._bodies, self._answer, self._limit_bytes = bodies, answer, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._bodies.room() as room:
            try:
                expect_json(scope)
                told = await self._answer(await room.read(scope, receive, self._limit_bytes))
                response: Response = JSONResponse(told)
            except RequestError as error:
                response = reply(ollama_error(error, unserved_id()))
        await response(scope, receive, send)


async def fetch(choice: str, models: Path, progress: OnProgress) -> None:
    """The whole model, in a child process. Raises ModelError."""
    ref = await identify_in_child(choice, models, progress)
    folder = await prepare_in_child(ref, models, None, progress)  # what describes it first: so many layers are there
    layers = await trio.to_thread.run_sync(layer_count, folder)
    await prepare_in_child(ref, models, (0, layers), progress)


def no_embedder(service: Service) -> BadRequest:
    """Why there are no embeddings. Raises NoRoute where nothing is served."""
    name = service.served().plan.model.name
    return BadRequest("model", f"{name!r} writes text and makes no embeddings; no model that does can be served yet")


def _named(body: bytes) -> tuple[str, bool]:
    """The model that a body names, and whether a stream is wanted. Raises BadRequest."""
    NAMED.check(body)
    asked: _Named = decoded(body, _Named)
    raw, where = (asked.name, "name") if is_raw(asked.model, b"null") else (asked.model, "model")
    name = model_name("" if is_raw(raw, b"null") else text_of(raw, where))
    if not name:
        raise BadRequest("model", "is missing")
    return name, asked.stream is not False


def _fetchable(name: str) -> str:
    """A hub id, or the default model: a path would have this machine's own files read. Raises BadRequest."""
    if name in ("default", DEFAULT_NAME):
        return name
    match = HUB_NAME.fullmatch(name)
    if match is None or ".." in name:
        raise BadRequest("model", f"must be a Hugging Face id as org/name, not {shown(name)}")
    return match[1]
