"""A node that is only its HTTP API: replays scripted states, events and answers over a unix socket.

It speaks just enough HTTP/1.1 for one request per connection, and notes what it was asked and which clients hung up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec

from node.home import Control, Home
from node.journal.apply import apply
from node.journal.state import State
from node.wire.events import Event, HopLatency, Numbered
from node.wire.ids import NodeId

Step = str | float | asyncio.Event | dict[str, object]
"""Of an answer: text to send, seconds to wait, something to wait for, or a whole chunk."""


@dataclass
class Answer:
    """How the fake answers one chat request."""

    steps: Sequence[Step] = ()
    hops: tuple[HopLatency, ...] = ()
    finish: bool = True
    """Whether the last chunk and `[DONE]` come, or the connection just ends."""
    refuse: tuple[int, bytes] | None = None
    """Status and body instead of a stream."""
    ttft_ms: float = 420.0
    tpot_ms: float = 42.5


@dataclass
class FakeNode:
    """One home with a node's API in it. `say` appends an event, as the real journal does."""

    home: Home
    state: State = field(default_factory=lambda: State(NodeId("fake")))
    answers: list[Answer] = field(default_factory=list)
    """Used up from the front; the last one is used again."""
    asked: list[dict[str, object]] = field(default_factory=list)
    """Bodies of the chat requests."""
    seen_headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """A client closed its connection in the middle of an answer."""
    oldest_kept: int = 0
    """Events up to here are gone."""
    state_reads: int = 0
    health: dict[str, str] = field(default_factory=lambda: {"status": "ok", "version": "0.0.1", "reason": ""})
    raw_state: bytes | None = None
    """Told instead of `state`: what a node of another version might say."""
    plan_answer: tuple[int, bytes] = (503, b'{"error": {"message": "no plan yet"}}')
    """Status and body for whoever asks for the plan, or for a change of it."""
    plan_asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    """Paths and bodies of those requests."""
    token: str | None = None
    """Serve loopback TCP with this token instead of the socket."""

    def __post_init__(self) -> None:
        self._log: list[Numbered] = []
        self._news = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, *events: Event) -> None:
        """Something happens on the node."""
        for event in events:
            numbered = Numbered(self.state.seq + 1, 1_700_000_000.0 + self.state.seq, event)
            self.state = apply(self.state, numbered)
            self._log.append(numbered)
        self._news.set()
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Listen, and announce it in the home."""
        if self.token is not None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            port = self._server.sockets[0].getsockname()[1]
            self.home.write_control(Control(None, port, self.token))
        else:
            self.home.runtime.mkdir(parents=True, exist_ok=True)
            path = self.home.socket_path
            path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, str(path))
            self.home.write_control(Control(str(path), None, None))

    async def stop(self) -> None:
        """Die: every connection is cut, the announcement goes."""
        self.home.control_file.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def restart(self, state: State) -> None:
        """Come back as a new life of the node, which counts its events from `state.seq` again."""
        self.state, self._log, self.oldest_kept = state, [], state.seq
        await self.start()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *header_lines = request.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in header_lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.seen_headers.append(headers)
            await self._route(first.split()[1], headers, body, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _route(
        self,
        target: str,
        headers: dict[str, str],
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        url = urlsplit(target)
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            await _reply(writer, 401, b'{"error": {"message": "no valid token"}}')
        elif url.path == "/v1/state":
            self.state_reads += 1
            await _reply(writer, 200, self.raw_state or msgspec.json.encode(self.state))
        elif url.path == "/health":
            await _reply(writer, 200, json.dumps(self.health).encode())
        elif url.path == "/v1/models":
            await _reply(writer, 200, b'{"object": "list", "data": [{"id": "toy", "object": "model"}]}')
        elif url.path == "/v1/events":
            await self._events(int(parse_qs(url.query)["since"][0]), writer)
        elif url.path in ("/v1/plan", "/v1/plan/apply"):
            self.plan_asked.append((url.path, json.loads(body)))
            await _reply(writer, *self.plan_answer)
        elif url.path == "/v1/chat/completions":
            self.asked.append(json.loads(body))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            await self._chat(answer, reader, writer)
        else:
            await _reply(writer, 404, b"no such page")

    async def _events(self, since: int, writer: asyncio.StreamWriter) -> None:
        if since < self.oldest_kept or since > self.state.seq:
            await _reply(writer, 410, b'{"error": {"message": "events are gone"}}')
            return
        await _head(writer, 200, "application/x-ndjson")
        while True:
            news = self._news
            for numbered in self._log:
                if numbered.seq > since:
                    since = numbered.seq
                    await _send(writer, msgspec.json.encode(numbered) + b"\n")
            await _send(writer, b"\n")  # a keep-alive
            await news.wait()

    async def _chat(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer.refuse is not None:
            await _reply(writer, *answer.refuse)
            return
        await _head(writer, 200, "text/event-stream")
        watcher = asyncio.get_running_loop().create_task(self._watch(reader))
        try:
            pieces = 0
            for step in answer.steps:
                if isinstance(step, str):
                    pieces += 1
                    await _chunk(writer, {"choices": [{"index": 0, "delta": {"content": step}, "finish_reason": None}]})
                elif isinstance(step, dict):
                    await _chunk(writer, step)
                elif isinstance(step, asyncio.Event):
                    waiter = asyncio.ensure_future(step.wait())
                    await asyncio.wait({waiter, watcher}, return_when=asyncio.FIRST_COMPLETED)
                    waiter.cancel()
                else:
                    await asyncio.sleep(step)
            if answer.finish and not self.hung_up.is_set():
                await _chunk(writer, _last_chunk(answer))
                usage = {"prompt_tokens": 12, "completion_tokens": pieces, "total_tokens": 12 + pieces}
                await _chunk(writer, {"choices": [], "usage": usage})
                await _send(writer, b"data: [DONE]\n\n")
        finally:
            watcher.cancel()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        if await reader.read(1) == b"":
            self.hung_up.set()


def _last_chunk(answer: Answer) -> dict[str, object]:
    return {
        "model": "toy",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "parallax": {
            "request_id": "chatcmpl-1",
            "ttft_ms": answer.ttft_ms,
            "tpot_ms": answer.tpot_ms,
            "return_ms": 0.4,
            "hops": msgspec.to_builtins(answer.hops),
        },
    }


async def _chunk(writer: asyncio.StreamWriter, chunk: dict[str, object]) -> None:
    await _send(writer, f"data: {json.dumps(chunk)}\n\n".encode())


async def _head(writer: asyncio.StreamWriter, status: int, kind: str) -> None:
    await _send(writer, f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode())


async def _reply(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    await _send(writer, head.encode() + body)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def temporary_home(folder: Path) -> Home:
    """A home in a test's own folder."""
    return Home(folder, folder / "run", folder / "models")


@asynccontextmanager
async def running(node: FakeNode) -> AsyncIterator[FakeNode]:
    """The node listens inside the block."""
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


__all__ = ["Answer", "FakeNode", "running", "temporary_home"]
