"""The door: both families, and a system without room for another file."""

from __future__ import annotations

import errno
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from node.errors import UsageError
from node.open_files import raise_open_files
from node.swarm.front_door import EVERYWHERE, PendingConnections, answer, open_listeners
from node.swarm.socket_stream import SocketStream


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_without_a_wish_every_interface_is_listened_on_with_one_port() -> None:
    async def main() -> None:
        opened = await open_listeners([], {})
        ports = {listener.socket.getsockname()[1] for _, listener in opened}
        assert [address for address, _ in opened] == list(EVERYWHERE[: 1 + has_ipv6()])
        assert len(ports) == 1
        remembered = {str(EVERYWHERE[0]): ports.pop()}
        for _, listener in opened:
            await listener.aclose()
        again = await open_listeners([], remembered)
        assert {listener.socket.getsockname()[1] for _, listener in again} == set(remembered.values())
        for _, listener in again:
            await listener.aclose()

    trio.run(main)


def test_a_machine_without_one_family_uses_the_other_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = trio.open_tcp_listeners

    async def only_ipv4(port: int, *, host: str) -> Any:
        if ":" in host:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return await real(port, host="127.0.0.1")

    async def nothing(port: int, *, host: str) -> Any:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    async def main() -> None:
        monkeypatch.setattr(trio, "open_tcp_listeners", only_ipv4)
        ((address, listener),) = await open_listeners([], {})
        assert address == EVERYWHERE[0]
        await listener.aclose()
        with pytest.raises(UsageError, match="::"):
            await open_listeners([EVERYWHERE[1]], {})
        monkeypatch.setattr(trio, "open_tcp_listeners", nothing)
        with pytest.raises(UsageError):
            await open_listeners([], {})

    with caplog.at_level(logging.INFO):
        trio.run(main)
    assert "Address family not supported" in caplog.text


class FullListener:
    """A system that has no file left for ten minutes, and then has."""

    def __init__(self) -> None:
        self.asked = 0

    async def accept(self) -> trio.SocketStream:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if trio.current_time() < 600:
            raise OSError(errno.EMFILE, "Too many open files")
        await trio.sleep_forever()
        raise AssertionError


def test_without_a_file_for_another_connection_the_door_waits_and_says_so_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = FullListener()

    async def admit(socket: SocketStream, leave: Callable[[], None]) -> None:
        raise AssertionError("nobody comes")

    async def main() -> None:
        began = trio.current_time()
        with trio.move_on_after(1000):
            await answer(cast(Any, [listener]), PendingConnections(), admit)
        assert trio.current_time() - began >= 1000, "it goes on"

    with caplog.at_level(logging.WARNING):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert listener.asked <= 2 * 600 + 10
    assert 1 <= len(caplog.records) <= 12, "once a minute"
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_as_many_files_are_taken_as_the_system_lets_us_have() -> None:
    code = (
        "import resource as r; from node.open_files import raise_open_files as up;"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (256, hard)); up();"
        "soft, now = r.getrlimit(r.RLIMIT_NOFILE); assert now == hard, (now, hard); print(soft)"
    )
    took = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert took >= 1024
    assert raise_open_files.__doc__
