"""What a node says of where it is: interfaces come and go, and names mean something else tomorrow."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
from trio.testing import MockClock

from node.swarm import own_addresses
from node.swarm.addresses import Address
from node.swarm.own_addresses import LOOK_EVERY_S, RESOLVE_EVERY_S, OwnAddresses

ANY = Address("ip4", "0.0.0.0", 4001)
HOME = Address("dns", "myhome.example", 4001)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_change_of_network_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces: list[Address] = [Address("ip4", "127.0.0.1", 4001)]
    monkeypatch.setattr(own_addresses, "announced", lambda bound: tuple(interfaces))

    async def main() -> None:
        own, moves = OwnAddresses([ANY], []), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own.watch, lambda: moves.append(trio.current_time()))
            await trio.sleep(60)
            assert moves == []
            interfaces.insert(0, Address("ip4", "192.168.1.7", 4001))  # Wi-Fi is up
            began = trio.current_time()
            await own.changed()
            assert trio.current_time() - began <= LOOK_EVERY_S
            assert own.told() == own.local == tuple(interfaces)
            await trio.sleep(60)
            assert len(moves) == 1
            nursery.cancel_scope.cancel()

    run(main)


def test_a_dynamic_name_is_looked_up_again_and_told_with_what_it_means_now(caplog: pytest.LogCaptureFixture) -> None:
    meaning: list[str] = []

    async def resolve(host: str, family: socket.AddressFamily) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        assert (host, family) == ("myhome.example", socket.AF_UNSPEC)
        if not meaning:
            raise socket.gaierror("no such name")
        return meaning

    async def main() -> None:
        own, moves = OwnAddresses([ANY], [HOME], resolve), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own.watch, lambda: moves.append(1))
            await trio.sleep(300)
            assert own.told() == (HOME,)
            assert caplog.text.count("not known here now") == 1
            for meaning[:] in (["203.0.113.5"], ["203.0.113.9", "2001:db8::9"], []):
                await trio.sleep(RESOLVE_EVERY_S + LOOK_EVERY_S)
            assert own.told() == (Address("ip4", "203.0.113.9", 4001), Address("ip6", "2001:db8::9", 4001), HOME)
            assert len(moves) == 2, "a name that is not known for a while keeps its meaning"
            nursery.cancel_scope.cancel()

    with caplog.at_level(logging.WARNING):
        run(main)


def test_the_system_is_asked_for_names_and_needs_no_server_for_those_it_knows() -> None:
    async def main() -> None:
        assert set(await own_addresses.resolve("localhost", socket.AF_UNSPEC)) <= {"127.0.0.1", "::1"}

    trio.run(main)
