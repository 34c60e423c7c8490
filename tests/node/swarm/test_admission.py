"""Who gets in, who does not, and what a stranger learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from node.errors import NotAdmitted
from node.swarm.admission import admit
from node.swarm.secret import SwarmSecret
from node.wire.control import Admission, Hello, Proof
from node.wire.ids import NodeId
from node.wire.records import WIRE_VERSION

ADA, BOB = NodeId("ada"), NodeId("bob")
SECRET, OTHER = SwarmSecret(b"s" * 32), SwarmSecret(b"t" * 32)
LIFE_A, LIFE_B = b"a" * 32, b"b" * 32


class Pipe:
    def __init__(self, change: Callable[[Admission], Admission] = lambda message: message) -> None:
        self.sent: list[Admission] = []
        self._change = change
        self._in, self._out = trio.open_memory_channel[Admission](10)
        self.peer: Pipe

    async def send(self, message: Admission) -> None:
        self.sent.append(message)
        await self.peer._in.send(self._change(message))

    async def receive(self) -> Admission:
        try:
            return await self._out.receive()
        except trio.EndOfChannel:
            raise NotAdmitted(BOB, "it hung up") from None


def meet(
    dialer: SwarmSecret, listener: SwarmSecret, *, change: Callable[[Admission], Admission] = lambda m: m, **ids: NodeId
) -> tuple[Any, Any, Pipe, Pipe]:
    """Run both sides; (result or error of the dialer, of the listener, what each sent)."""
    results: dict[str, Any] = {}

    async def side(name: str, pipe: Pipe, *args: Any, dialed: bool) -> None:
        try:
            results[name] = await admit(pipe, *args, dialed=dialed)
        except NotAdmitted as error:
            results[name] = error
        pipe.peer._in.close()

    async def main() -> tuple[Pipe, Pipe]:
        one, two = Pipe(change), Pipe()
        one.peer, two.peer = two, one
        seen_as = ids.get("seen_as", ADA)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: side("dialer", one, dialer, ADA, BOB, LIFE_A, dialed=True))
                nursery.start_soon(lambda: side("listener", two, listener, BOB, seen_as, LIFE_B, dialed=False))
        return one, two

    one, two = trio.run(main)
    return results["dialer"], results["listener"], one, two


def test_two_members_admit_each_other_and_learn_the_others_life() -> None:
    dialer, listener, *_ = meet(SECRET, SECRET)
    assert (dialer, listener) == (LIFE_B, LIFE_A)


def test_a_dialer_without_the_secret_gets_no_proof() -> None:
    dialer, listener, _, two = meet(OTHER, SECRET)
    assert isinstance(listener, NotAdmitted)
    assert "parallax invite" in str(listener)
    assert isinstance(dialer, NotAdmitted)
    assert [type(message) for message in two.sent] == [Hello]


def test_a_listener_without_the_secret_is_found_out() -> None:
    dialer, *_ = meet(SECRET, OTHER)
    assert isinstance(dialer, NotAdmitted)


def test_a_proof_is_bound_to_the_peer_ids_that_noise_has_proven() -> None:
    _, listener, *_ = meet(SECRET, SECRET, seen_as=NodeId("mallory"))
    assert isinstance(listener, NotAdmitted)


def test_a_proof_that_was_reflected_or_replayed_does_not_fit() -> None:
    recorded = meet(SECRET, SECRET)[2].sent[1]
    _, listener, *_ = meet(SECRET, SECRET, change=lambda m: recorded if isinstance(m, Proof) else m)
    assert isinstance(listener, NotAdmitted)


def test_a_changed_nonce_or_life_is_noticed() -> None:
    for changes in ({"nonce": b"x" * 32}, {"life": b"x" * 32}):

        def change(message: Admission, changes: dict[str, bytes] = changes) -> Admission:
            if not isinstance(message, Hello):
                return message
            fields = {"nonce": message.nonce, "life": message.life} | changes
            return Hello(message.wire_version, **fields)

        _, listener, *_ = meet(SECRET, SECRET, change=change)
        assert isinstance(listener, NotAdmitted)


@pytest.mark.parametrize(("version", "who"), [(WIRE_VERSION + 1, "this node"), (WIRE_VERSION - 1, "that node")])
def test_unequal_versions_say_which_side_to_upgrade(version: int, who: str) -> None:
    def change(message: Admission) -> Admission:
        return Hello(version, message.nonce, message.life) if isinstance(message, Hello) else message

    _, listener, _, two = meet(SECRET, SECRET, change=change)
    assert f"upgrade {who}" in str(listener)
    assert [type(message) for message in two.sent] == [Hello]


def test_one_who_begins_with_a_proof_is_refused() -> None:
    _, listener, *_ = meet(SECRET, SECRET, change=lambda message: Proof(b"p" * 32))
    assert isinstance(listener, NotAdmitted)
