"""One connection: it ends when either side says so, and the client is never waited for without an end."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.api.http.disconnect import until_disconnect
from node.api.http.http_connection import IDLE_S, WRITE_S, HttpConnection

GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
    """As the chat route does: the body is read, then the client is watched while it is answered."""
    while (await receive()).get("more_body"):
        pass

    async def answer() -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    await until_disconnect(receive, answer)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[trio.SocketStream]:
    """A client's end of a connection to `app`."""
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await HttpConnection(app, theirs).run()
            await trio.aclose_forcefully(theirs)

        nursery.start_soon(serve)
        yield ours
        await ours.aclose()


def run(story: Callable[[], Awaitable[None]]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


async def what_is_there(client: trio.SocketStream) -> bytes:
    await trio.testing.wait_all_tasks_blocked()
    return bytes(await client.receive_some())


async def to_the_end(client: trio.SocketStream) -> bytes:
    return b"".join([bytes(part) async for part in client])


@pytest.mark.parametrize("app", [whole, streamed])
@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_a_client_that_wants_one_answer_gets_it_and_the_end(app: ASGIApp, request_head: bytes) -> None:
    async def story() -> None:
        async with served(app) as client:
            before_s = trio.current_time()
            await client.send_all(request_head)
            answer = await to_the_end(client)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"ok" in answer or b"b" in answer
            assert trio.current_time() == before_s, "it does not wait for a deadline"

    run(story)


@pytest.mark.parametrize("app", [whole, streamed])
def test_a_connection_is_used_again_and_ends_when_it_is_idle(app: ASGIApp) -> None:
    async def story() -> None:
        async with served(app) as client:
            for _ in range(3):
                await client.send_all(GET)
                assert (await what_is_there(client)).startswith(b"HTTP/1.1 200")
            before_s = trio.current_time()
            await to_the_end(client)
            assert trio.current_time() - before_s == pytest.approx(IDLE_S)

    run(story)


def test_requests_sent_ahead_are_answered_in_order() -> None:
    async def story() -> None:
        async with served(streamed) as client:
            await client.send_all(GET * 3 + b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await to_the_end(client)).count(b"HTTP/1.1 200") == 4

    run(story)


def test_a_head_that_comes_letter_by_letter_has_one_deadline() -> None:
    async def story() -> None:
        async with served(whole) as client:
            before_s = trio.current_time()
            with pytest.raises(trio.BrokenResourceError):
                for letter in b"GET / HTTP/1.1\r\n" * 100:
                    await client.send_all(bytes([letter]))
                    await trio.sleep(1)
            assert trio.current_time() - before_s < IDLE_S + 3

    run(story)


def test_a_client_that_reads_nothing_ends_its_answer() -> None:
    ended: list[float] = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        finally:
            ended.append(trio.current_time())

    async def story() -> None:
        async with served(endless) as client:
            before_s = trio.current_time()
            await client.send_all(GET)
            await trio.sleep(WRITE_S + 1)
            assert ended[0] - before_s == pytest.approx(WRITE_S)

    run(story)


def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    async def long(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2000000")]})
        await send({"type": "http.response.body", "body": b"x" * 2_000_000})

    async def story() -> None:
        async with served(long) as client:
            before_s = trio.current_time()
            await client.send_all(GET)
            got = 0
            while got < 2_000_000:
                await trio.sleep(WRITE_S / 4)
                got += len(await client.receive_some(65536))
            assert trio.current_time() - before_s > 3 * WRITE_S

    run(story)


def test_an_answer_ends_when_its_client_goes_away() -> None:
    given_up = trio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await until_disconnect(receive, trio.sleep_forever)
        given_up.set()

    async def story() -> None:
        async with served(waiting) as client:
            await client.send_all(GET)
            await trio.testing.wait_all_tasks_blocked()
            assert not given_up.is_set()
            await client.aclose()
            await given_up.wait()

    run(story)


def test_a_refused_body_is_not_read_and_the_refusal_arrives() -> None:
    async def story() -> None:
        async with served(whole) as client:
            head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
            await client.send_all(head + b"x" * 1000)
            answer = await to_the_end(client)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()

    run(story)


def test_a_short_body_that_nobody_wanted_does_not_cost_the_connection() -> None:
    async def story() -> None:
        async with served(whole) as client:
            for _ in range(2):
                await client.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc")
                assert b"connection: close" not in (await what_is_there(client)).lower()

    run(story)


def test_a_body_comes_whole_however_it_is_sent() -> None:
    async def story() -> None:
        for head, body in (
            (b"Content-Length: 5\r\n\r\n", b"hello"),
            (b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
            (b"Content-Length: 5\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", b"hello"),
        ):
            async with served(echo) as client:
                await client.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + head)
                await client.send_all(body)
                assert (await what_is_there(client)).startswith(b"HTTP/1.1 200")

    run(story)


def test_a_client_that_asks_before_it_sends_is_told_to_go_on() -> None:
    async def story() -> None:
        async with served(echo) as client:
            head = b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
            await client.send_all(head)
            assert (await what_is_there(client)).startswith(b"HTTP/1.1 100")
            await client.send_all(b"hello")
            assert (await what_is_there(client)).startswith(b"HTTP/1.1 200")

    run(story)


@pytest.mark.parametrize(
    "nonsense",
    [b"\x00\xff" * 4096, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01" * 99],
)
def test_what_is_no_http_is_told_so_and_ended(nonsense: bytes) -> None:
    async def story() -> None:
        async with served(whole) as client:
            await client.send_all(nonsense + b"\r\n\r\n")
            answer = await to_the_end(client)
            assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer

    run(story)


def test_a_route_that_fails_is_told_and_logged_and_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a fault of ours")

    async def story() -> None:
        async with served(broken) as client:
            await client.send_all(GET)
            assert (await to_the_end(client)).startswith(b"HTTP/1.1 500")

    with caplog.at_level(logging.ERROR):
        run(story)
    assert "a fault of ours" in caplog.text


def test_a_head_has_no_body() -> None:
    async def story() -> None:
        async with served(whole) as client:
            await client.send_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await to_the_end(client)).endswith(b"\r\n\r\n")

    run(story)


def test_a_client_that_sends_ahead_without_end_fills_no_memory() -> None:
    seen: list[Message] = []

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with trio.move_on_after(5):
            seen.append(await receive())
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def story() -> None:
        async with served(busy) as client:
            await client.send_all(GET)
            sent = 0
            with trio.move_on_after(1):
                while True:
                    await client.send_all(b"x" * 65536)
                    sent += 65536
            buffers = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert sent < 1_000_000 + 2 * buffers
            assert not seen

    run(story)
