"""Whatever becomes of its planner or of the network between its members, a swarm ends with one plan and right answers.

Real processes. Each is reached through a gate that can be cut; see `tests.fakes.severable_roads`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Greedy
from tests.fakes.severable_roads import SeverableRoads
from tests.stories.conftest import START_S, Machine, RealNode, until

LAYERS = 30
AGREED_WITHIN_S = 30.0
"""On a busy machine; printed is how long it took."""

WATCHED_S = 4.0
"""Longer than any clock of the planner that could turn an agreement over."""


@pytest.fixture(scope="module")
def roads(shared_machine: Machine) -> Iterator[SeverableRoads]:
    def process_of(name: str) -> int:
        return next(node.process.pid for node in shared_machine.nodes if node.name == name and node.process)

    made = SeverableRoads(process_of)
    yield made
    made.close()


@pytest.fixture(scope="module")
def swarm(shared_machine: Machine, roads: SeverableRoads) -> list[RealNode]:
    ada, bob, cy = (shared_machine.node(name) for name in ("ada", "bob", "cy"))
    start(ada, roads, "--min-nodes", "3")
    until("the first node answers", ada.names, START_S)
    token = ada.command("invite").stdout.strip()
    for other in (bob, cy):
        start(other, roads, "--join", token)
    until("they have one plan", lambda: agreed([ada, bob, cy]), START_S)
    for each in (ada, bob, cy):
        each.wait_until_healthy()
    return [ada, bob, cy]


def start(node: RealNode, roads: SeverableRoads, *options: str) -> None:
    listen, announce = roads.gate(node.name)
    places = ("--listen", listen, "--announce", announce, "--no-discover")
    node.start(*places, "--api", "off", "--memory", "2g", "--threads", "1", *options)


def plan_of(node: RealNode) -> dict[str, Any]:
    plan: dict[str, Any] | None = node.state()["plan"]
    assert plan is not None, f"{node.name} has no plan"
    return plan


def agreed(nodes: list[RealNode]) -> dict[str, Any] | None:
    """The plan that all of them follow, if it covers the model with exactly these nodes."""
    first, *others = (plan_of(node) for node in nodes)
    ranges = [(assigned["start"], assigned["end"]) for assigned in first["assignments"]]
    tiles = [0, *itertools.chain.from_iterable(ranges), LAYERS]
    whole = tiles[::2] == tiles[1::2]
    named = {assigned["node_id"] for assigned in first["assignments"]}
    same = all(other == first for other in others)
    return first if same and whole and named == {node.state()["self_id"] for node in nodes} else None


def adopted_since(node: RealNode, seq: int) -> list[dict[str, Any]]:
    """The plans that this node has followed after event `seq`."""
    last = node.state()["seq"]
    plans = []
    with node.client() as client, client.stream("GET", "/v1/events", params={"since": seq}) as response:
        for line in filter(None, response.raise_for_status().iter_lines()):
            numbered = json.loads(line)
            if numbered["event"]["type"] == "plan_adopted":
                plans.append(numbered["event"]["plan"])
            if numbered["seq"] >= last:
                break
    return plans


def rank(plan: dict[str, Any]) -> tuple[int, list[int]]:
    """The order of plans: the epoch, then the smaller author."""
    return plan["epoch"], [-ord(letter) for letter in plan["author"]]


def assert_nothing_turns_it_over(
    nodes: list[RealNode], plan: dict[str, Any], agreed_s: float, since: dict[str, int]
) -> None:
    time.sleep(max(0.0, agreed_s + WATCHED_S - time.monotonic()))
    for node in nodes:
        followed = adopted_since(node, since[node.name])
        assert followed[-1] == plan, f"{node.name} has left the plan that all had agreed on"
        ranks = [rank(each) for each in followed]
        assert ranks == sorted(ranks), f"{node.name} went back to a plan that had been outranked"


def assert_each_answers(nodes: list[RealNode], greedy: Greedy) -> None:
    for node in nodes:
        node.wait_until_healthy(AGREED_WITHIN_S)
        answer = node.chat(greedy.prompt, max_tokens=8)
        assert answer
        assert greedy.out_text.startswith(answer), node.name


def test_halves_of_a_cut_swarm_serve_on_and_agree_again_when_the_network_heals(
    swarm: list[RealNode], roads: SeverableRoads, greedy_oracle: list[Greedy]
) -> None:
    ada, bob, cy = swarm
    before = plan_of(ada)
    since = {node.name: node.state()["seq"] for node in swarm}

    roads.cut(["ada", "bob"], ["cy"])
    cut_s = time.monotonic()
    left = until("one half has its plan", lambda: agreed([ada, bob]), AGREED_WITHIN_S)
    right = until("the other half has its own", lambda: agreed([cy]), AGREED_WITHIN_S)
    print(f"both halves had plans {time.monotonic() - cut_s:.1f} s after the cut")
    assert left != right
    assert min(left["epoch"], right["epoch"]) > before["epoch"]
    assert_each_answers(swarm, greedy_oracle[0])

    roads.mend()
    mended_s = time.monotonic()
    plan = until("all three follow one plan", lambda: agreed(swarm), AGREED_WITHIN_S)
    agreed_s = time.monotonic()
    print(f"one plan everywhere {agreed_s - mended_s:.1f} s after the network healed")
    assert plan["epoch"] > max(left["epoch"], right["epoch"])
    assert_each_answers(swarm, greedy_oracle[1])
    assert_nothing_turns_it_over(swarm, plan, agreed_s, since)


def test_a_planner_killed_in_the_middle_of_a_plan_is_followed_by_another(
    swarm: list[RealNode], roads: SeverableRoads, shared_machine: Machine, greedy_oracle: list[Greedy]
) -> None:
    ada = swarm[0]
    epoch = plan_of(ada)["epoch"]
    dan = shared_machine.node("dan")
    start(dan, roads, "--join", ada.command("invite").stdout.strip())
    of_id = {node.state()["self_id"]: node for node in swarm}
    of_id[until("the newcomer answers", lambda: dan.state()["self_id"], START_S)] = dan

    def newest() -> dict[str, Any] | None:
        """A newer plan, as a node tells it that has only heard of it."""
        return next(
            (
                plan
                for node_id, node in of_id.items()
                if (plan := node.state()["plan"]) and plan["epoch"] > epoch and plan["author"] != node_id
            ),
            None,
        )

    since = {node.name: node.state()["seq"] for node in of_id.values()}
    begun = until("a plan with the newcomer", newest, START_S, 0.01)
    planner = of_id[begun["author"]]
    assert planner.process is not None
    planner.process.kill()
    killed_s = time.monotonic()
    survivors = [node for node in of_id.values() if node is not planner]
    loading = [
        view["record"]["name"]
        for view in survivors[0].state()["nodes"].values()
        if any(held["state"] == "loading" for held in view["record"]["held"])
    ]
    plan = until("the survivors follow one plan", lambda: agreed(survivors), AGREED_WITHIN_S, 0.05)
    agreed_s = time.monotonic()
    print(f"one plan {agreed_s - killed_s:.1f} s after the planner's end; {', '.join(loading) or 'nobody'} was loading")
    assert plan["author"] != begun["author"]
    assert_each_answers(survivors, greedy_oracle[2])
    assert_nothing_turns_it_over(survivors, plan, agreed_s, since)
