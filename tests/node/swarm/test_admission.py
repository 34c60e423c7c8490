"""Who gets in, who does not, and what a stranger learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from node.errors import NotAdmitted
from node.swarm.admission import Admitted, admit
from node.swarm.secret import SwarmSecret
from node.wire.control import Admission, Hello, Proof
from node.wire.ids import NodeId

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
    dialer: SwarmSecret,
    listener: SwarmSecret,
    *,
    change: Callable[[Admission], Admission] = lambda m: m,
    versions: tuple[tuple[int, int], tuple[int, int]] = ((3, 3), (3, 3)),
    **ids: NodeId,
) -> tuple[Any, Any, Pipe, Pipe]:
    """Run both sides; (result or error of the dialer, of the listener, what each sent)."""
    results: dict[str, Any] = {}

    async def side(name: str, pipe: Pipe, *args: Any, dialed: bool) -> None:
        try:
            results[name] = await admit(pipe, *args, dialed=dialed, versions=versions[not dialed])
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
    assert (dialer, listener) == (Admitted(LIFE_B, 3, 3), Admitted(LIFE_A, 3, 3))


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
            return replace(message, **changes)

        _, listener, *_ = meet(SECRET, SECRET, change=change)
        assert isinstance(listener, NotAdmitted)


@pytest.mark.parametrize(
    ("ours", "theirs", "spoken"),
    [((3, 3), (3, 4), 3), ((3, 4), (3, 3), 3), ((3, 5), (4, 4), 4), ((3, 5), (2, 9), 5)],
)
def test_the_highest_common_version_is_spoken(ours: tuple[int, int], theirs: tuple[int, int], spoken: int) -> None:
    dialer, listener, *_ = meet(SECRET, SECRET, versions=(ours, theirs))
    assert (dialer.version, dialer.most) == (spoken, theirs[1])
    assert (listener.version, listener.most) == (spoken, ours[1])


@pytest.mark.parametrize(
    ("ours", "theirs", "who"),
    [((3, 3), (4, 4), "4, this node 3; upgrade this node"), ((4, 5), (3, 3), "3, this node 4 to 5; upgrade that node")],
)
def test_unequal_versions_say_which_side_to_upgrade(ours: tuple[int, int], theirs: tuple[int, int], who: str) -> None:
    dialer, listener, one, two = meet(SECRET, SECRET, versions=(ours, theirs))
    assert who in str(dialer)
    assert isinstance(listener, NotAdmitted)
    assert [type(message) for message in (*one.sent, *two.sent)] == [Hello, Hello]


def test_a_node_that_names_one_version_speaks_that_alone() -> None:
    hello = Hello(2, b"n" * 32, b"l" * 32)
    assert hello.versions == (2, 2)


def test_nobody_in_the_middle_can_talk_two_nodes_down() -> None:
    def change(message: Admission) -> Admission:
        return replace(message, wire_version=3) if isinstance(message, Hello) else message

    dialer, listener, *_ = meet(SECRET, SECRET, change=change, versions=((3, 4), (3, 4)))
    assert isinstance(dialer, NotAdmitted)
    assert isinstance(listener, NotAdmitted)


def test_one_who_begins_with_a_proof_is_refused() -> None:
    _, listener, *_ = meet(SECRET, SECRET, change=lambda message: Proof(b"p" * 32))
    assert isinstance(listener, NotAdmitted)
