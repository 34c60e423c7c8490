"""A port under clients that keep it waiting."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trio
import trio.testing
from starlette.types import Receive, Scope, Send

from node.api.http import listening
from node.api.http.disconnect import until_disconnect
from node.api.http.listening import NotListening, listen_localhost, listen_tcp
from node.api.http.owner import Owner
from node.api.http.serving import GIVES_WAY_AFTER_S, most_connections, serve
from node.api.routes.events import MOST_FOLLOWERS, SLOW_S, EventsEndpoint
from node.errors import UsageError
from node.journal.log import Journal
from node.open_files import raise_open_files
from tests.fakes.swarms import DESK

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_GET = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
MOST = 8


async def at_work(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers `/`; what asks for anything else is at work until it goes away."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] != "/":
        await until_disconnect(receive, trio.sleep_forever)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def on_a_port(story: Callable[[int], Awaitable[None]]) -> None:
    async def main() -> None:
        listener = listen_tcp("127.0.0.1", 0, "--api")
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, at_work, [listener], MOST)
            with trio.fail_after(20):
                await story(listener.getsockname()[1])
            nursery.cancel_scope.cancel()

    trio.run(main)


async def asked(port: int, request: bytes) -> trio.SocketStream:
    client = await trio.open_tcp_stream("127.0.0.1", port)
    await client.send_all(request)
    return client


async def answer_of(port: int) -> bytes:
    client = await asked(port, LAST_GET)
    answer = b"".join([bytes(part) async for part in client])
    await client.aclose()
    return answer


def test_clients_that_say_nothing_cannot_lock_out_one_that_does() -> None:
    async def story(port: int) -> None:
        silent = [await asked(port, b"GET / HT") for _ in range(MOST)]
        await trio.sleep(GIVES_WAY_AFTER_S + 0.2)
        for _ in range(3):
            assert (await answer_of(port)).startswith(b"HTTP/1.1 200")
        for client in silent:
            await client.aclose()

    on_a_port(story)


def test_where_all_are_at_work_a_new_client_is_told_to_come_again() -> None:
    async def story(port: int) -> None:
        working = [await asked(port, GET.replace(b"GET /", b"GET /long")) for _ in range(MOST)]
        await trio.sleep(GIVES_WAY_AFTER_S + 0.2)
        answer = await answer_of(port)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: " in answer
        assert b'"error"' in answer
        await working.pop().aclose()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert (await answer_of(port)).startswith(b"HTTP/1.1 200")
        for client in working:
            await client.aclose()

    on_a_port(story)


def test_followers_of_events_never_take_all_places() -> None:
    endpoint = EventsEndpoint(Journal(DESK), Owner())
    told: list[int] = []

    async def follow(nursery: trio.Nursery) -> None:
        async def receive() -> dict[str, object]:
            await trio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                told.append(cast("int", message["status"]))

        scope = {"type": "http", "query_string": b"", "headers": [], "method": "GET", "path": "/v1/events"}
        await endpoint(scope, receive, send)  # type: ignore[arg-type]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(MOST_FOLLOWERS + 3):
                nursery.start_soon(follow, nursery)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(told) == [200] * MOST_FOLLOWERS + [503] * 3
            nursery.cancel_scope.cancel()
        told.clear()
        async with trio.open_nursery() as nursery:  # places are given back
            nursery.start_soon(follow, nursery)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert told == [200]

    trio.run(main)


def test_followers_that_read_nothing_give_way_to_one_that_does() -> None:
    endpoint = EventsEndpoint(Journal(DESK), Owner())
    told: list[int] = []
    ended: list[int] = []

    async def follow(number: int, reads: bool) -> None:
        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                told.append(cast("int", message["status"]))
            elif not reads and message.get("body"):
                await trio.sleep_forever()

        async def receive() -> dict[str, object]:
            await trio.sleep_forever()
            raise AssertionError

        scope = {"type": "http", "query_string": b"", "headers": [], "method": "GET", "path": "/v1/events"}
        await endpoint(scope, receive, send)  # type: ignore[arg-type]
        ended.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(MOST_FOLLOWERS):
                nursery.start_soon(follow, number, number < 2)
                await trio.sleep(0.001)
            await follow(-1, True)
            assert told[-1] == 503, "they had no time to read yet"
            await trio.sleep(SLOW_S)
            nursery.start_soon(follow, 100, True)
            await trio.sleep(0.01)
            assert told[-1] == 200
            assert ended == [-1, 2], "the one that has read nothing for longest"
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_connections_leave_files_for_the_rest_of_the_node() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, before[1]))
        assert most_connections() == 20
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 60
        assert 4 <= most_connections() <= 400
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_localhost_is_both_loopbacks_on_one_port() -> None:
    listeners = listen_localhost(0, "--api")
    ports = {listener.getsockname()[1] for listener in listeners}
    hosts = [listener.getsockname()[0] for listener in listeners]
    try:
        assert len(ports) == 1
        assert hosts in (["127.0.0.1", "::1"], ["127.0.0.1"])
        again = listen_localhost(ports.pop(), "--api")
        assert again[0].getsockname()[1] != listeners[0].getsockname()[1]
        for listener in again:
            listener.close()
        with pytest.raises(UsageError, match=f"--api 127.0.0.1:{listeners[0].getsockname()[1]}"):
            listen_localhost(listeners[0].getsockname()[1], "--api", ports_tried=1)
    finally:
        for listener in listeners:
            listener.close()


def test_a_machine_without_a_loopback_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(host: str, port: int, option: str) -> socket.socket:
        raise NotListening(f"{option} {host}:{port}: no", errno.EADDRNOTAVAIL)

    monkeypatch.setattr(listening, "listen_tcp", missing)
    with pytest.raises(UsageError, match=r"neither 127\.0\.0\.1 nor ::1 is an address of this machine"):
        listen_localhost(8765, "--api")


def test_running_out_of_files_is_told_once_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    import resource

    async def story(port: int) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [await asked(port, b"GET") for _ in range(3)]
        highest = max(client.socket.fileno() for client in clients)
        waiting = [socket.socket() for _ in range(4)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, before[1]))
        try:
            for each in waiting:
                each.connect(("127.0.0.1", port))
            await trio.sleep(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for each in waiting:
            each.close()
        for client in clients:
            await client.aclose()
        assert (await answer_of(port)).startswith(b"HTTP/1.1 200")

    with caplog.at_level(logging.WARNING):
        on_a_port(story)
    assert caplog.text.count("no HTTP connection can be taken in") <= 1
    assert "Traceback" not in caplog.text
