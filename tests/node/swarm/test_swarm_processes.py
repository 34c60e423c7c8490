"""Real processes: found, killed, stopped, restarted. Times are the nodes' own stamps."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from node.home import Home
from node.swarm.addresses import Address
from node.swarm.identity import load_identity
from node.swarm.invitation import Invitation
from node.swarm.ports import remember_ports
from node.swarm.secret import settle_secret
from tests.node.swarm.processes import NodeProcess, Nursery, node_processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP and SIGKILL")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with node_processes(tmp_path_factory.mktemp("swarm")) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def three(nursery: Nursery) -> list[NodeProcess]:
    """Bob and eve are started first; the inviter comes last and is waited for."""
    root = nursery.folder / "ada"
    home = Home(root, root, root)
    identity = load_identity(home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    remember_ports(home, {"/ip4/127.0.0.1/tcp/0": port})
    place = Address("ip4", "127.0.0.1", port, identity.node_id)
    token = Invitation(settle_secret(home, []).value, (place,)).token()
    bob, eve = nursery.start("bob", "--join", token), nursery.start("eve", "--join", token)
    bob.ready()
    eve.ready()
    ada = nursery.start("ada").ready()
    assert (ada.id, ada.port) == (identity.node_id, port)
    return [ada, bob, eve]


def test_three_nodes_started_in_any_order_see_one_another(three: list[NodeProcess]) -> None:
    ada, bob, eve = three
    for one, *others in ((ada, bob, eve), (bob, ada, eve), (eve, ada, bob)):
        one.sees(*others)
        assert one.members() == {ada.id, bob.id, eve.id}


def test_a_stopped_node_is_gone_within_five_seconds_and_back_when_it_goes_on(three: list[NodeProcess]) -> None:
    ada, bob, eve = three
    marks = [len(ada.said), len(bob.said)]
    before_it = marks[0]
    ada.tell("send", to=eve.id, position=0, bytes=60 * 1024 * 1024)  # under way when it is stopped: buffers are full
    time.sleep(0.1)  # it cannot say that it has begun
    stopped = eve.signal(signal.SIGSTOP)
    for one, mark in zip((ada, bob), marks, strict=True):
        gone = one.gone(eve, since=mark)
        assert gone["at"] - stopped < 5.0
        assert gone["why"] in ("silent", "disconnected")
    assert ada.wait_for(lambda entry: "sent" in entry, since=before_it)["sent"] is None
    marks = [len(ada.said), len(bob.said)]
    eve.signal(signal.SIGCONT)
    for one, mark in zip((ada, bob), marks, strict=True):
        one.sees(eve, since=mark)
    # what came before it was stopped is read first, so its view settles a moment after theirs
    while eve.do("send", "sent", to=ada.id, position=1, bytes=1000) != 1:
        assert eve.alive
    ada.wait_for(lambda entry: entry.get("arrival") == "Step", since=marks[0])


def test_a_killed_node_is_gone_everywhere_within_three_seconds_and_stays_gone_until_it_is_back(
    nursery: Nursery, three: list[NodeProcess]
) -> None:
    ada, bob, eve = three
    ada.do("members", "members")
    marks = [len(ada.said), len(bob.said)]
    killed = eve.signal(signal.SIGKILL)
    for one, mark in zip((ada, bob), marks, strict=True):
        assert one.gone(eve, since=mark)["at"] - killed < 3.0
    eve.process.wait()
    again = nursery.start("eve").ready()
    assert again.id == eve.id
    for one, mark in zip((ada, bob), marks, strict=True):
        one.sees(again, since=mark)
        told = [entry["news"] for entry in one.said[mark:] if entry.get("id") == eve.id]
        kinds = [kind for kind in told if kind != "link lost"]
        assert kinds[:2] == ["gone", "seen"]
        assert "gone" not in kinds[1:]
        back = next(e for e in one.said[mark:] if e.get("news") == "seen" and e["id"] == eve.id)
        assert back["at"] > again.said[0]["at"] - 0.5, "nothing brought the dead back before it was"
    three[2] = again


def test_a_node_that_leaves_is_gone_in_less_than_a_second_and_ends_soon(three: list[NodeProcess]) -> None:
    ada, bob, eve = three
    marks = [len(ada.said), len(bob.said)]
    asked = eve.leave()
    for one, mark in zip((ada, bob), marks, strict=True):
        gone = one.gone(eve, since=mark)
        assert gone["at"] - asked < 1.0
        assert gone["why"] == "left"
    ended = eve.wait_for(lambda entry: "stopped" in entry)
    assert ended["at"] - asked < 2.5
    assert eve.process.wait(10) == 0
    assert eve.errors() == ""
