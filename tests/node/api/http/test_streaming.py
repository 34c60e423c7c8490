"""Streams that nothing comes on for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import trio
import trio.testing

from node.api.http.streaming import FIRST_SIGN_S, SIGN_EVERY_S, event_stream

SIGN = b": waiting\n\n"


class Client:
    """Takes messages, and knows when each came."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.told: list[tuple[float, Any]] = []
        self._slow_s, self._writing = slow_s, False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        assert not self._writing, "two writes at a time"
        self._writing = True
        await trio.sleep(self._slow_s)
        self._writing = False
        self.told.append((trio.current_time(), message.get("body", message.get("status"))))


def run(story: Callable[[], Awaitable[None]]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_stream_lives_while_its_request_waits() -> None:
    async def story() -> None:
        client, begun_s = Client(), trio.current_time()
        async with event_stream(client.send, "text/event-stream", SIGN) as stream:
            await trio.sleep(FIRST_SIGN_S + 2 * SIGN_EVERY_S + 1)
            await stream.send(b"first")
            await stream.end(b"last")
        times = [(round(at - begun_s), what) for at, what in client.told]
        assert times == [(5, 200), (5, SIGN), (15, SIGN), (25, SIGN), (26, b"first"), (26, b"last")]

    run(story)


def test_an_error_that_comes_soon_is_no_stream_yet() -> None:
    async def story() -> None:
        client = Client()
        async with event_stream(client.send, "text/event-stream", SIGN) as stream:
            await trio.sleep(FIRST_SIGN_S - 1)
            assert not stream.begun
        await trio.sleep(100)
        assert client.told == []

    run(story)


def test_a_form_without_such_signs_says_nothing() -> None:
    async def story() -> None:
        client = Client()
        async with event_stream(client.send, "application/x-ndjson", b"") as stream:
            await trio.sleep(100)
            await stream.end(b"all")
        assert [what for _, what in client.told] == [200, b"all"]

    run(story)


def test_no_sign_gets_between_the_parts_of_an_event_to_a_slow_client() -> None:
    async def story() -> None:
        client = Client(slow_s=7.0)
        async with event_stream(client.send, "text/event-stream", SIGN) as stream:
            for number in range(8):
                await trio.sleep(number * 3.0)
                await stream.send(b"part")
            await stream.end(b"last")
        assert [what for _, what in client.told if what != SIGN] == [200, *[b"part"] * 8, b"last"]
        assert client.told[-1][1] == b"last"

    run(story)


def test_signs_stop_while_events_come() -> None:
    async def story() -> None:
        client = Client()
        async with event_stream(client.send, "text/event-stream", SIGN) as stream:
            for _ in range(60):
                await trio.sleep(1.0)
                await stream.send(b"x")
            await stream.end(b"")
        assert SIGN not in [what for _, what in client.told]

    run(story)
