"""The simulator: it agrees with the prediction, survives every kind of change, and repeats itself exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadPool, NoRoute
from node.plan import allocate, predict
from node.plan.chain_time import chain_of_nodes, node_times
from node.plan.machines.pool import Links, Pool, PoolNode, Workload
from node.plan.placement.allocation import Stage
from node.plan.routing.router import Host, Request, route
from tests.bench.simulate import Arrival, Happening, Outcome, Simulation, TwoPhase
from tests.fakes.pools import machine, machines, mixture

WORK = Workload(128, 32)
LINKS = Links({("eu", "us"): 60.0})


def run(nodes: Sequence[PoolNode], arrivals: Sequence[Arrival], happenings: Sequence[Happening] = ()) -> Outcome:
    model = mixture(24)
    scheduler = TwoPhase(model, "balanced", WORK)
    return Simulation(model, Pool(tuple(nodes), LINKS), scheduler, arrivals, happenings, WORK).run(3_600_000)


def test_one_user_gets_what_is_predicted() -> None:
    nodes = machines("AAA")
    outcome = run(nodes, [Arrival(0.0, 128, 32)])
    prediction = predict(allocate(mixture(24), nodes, LINKS, workload=WORK))
    served = outcome.served[0]
    per_token_ms = (served.done_ms - served.first_token_ms) / 31
    assert per_token_ms == pytest.approx(prediction.tpot_ms, rel=0.01)
    assert served.first_token_ms == pytest.approx(prediction.ttft_ms, rel=0.01)


class Fixed:
    """One chain, whoever asks."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages

    def place(self, pool: Pool) -> Sequence[Stage]:
        return self._stages

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        return self._stages


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.floats(1e10, 2e12), st.floats(0.5, 50), st.floats(0, 5), st.floats(0, 20)),
        min_size=1,
        max_size=5,
    ),
    st.floats(0.2, 200),
    st.floats(1, 10_000),
    st.integers(1, 2000),
    st.integers(2, 40),
)
def test_one_users_times_are_those_of_the_chain(
    rows: list[tuple[int, float, float, float, float]], rtt_ms: float, mbps: float, prompt: int, output: int
) -> None:
    model, work = mixture(sum(layers for layers, *_ in rows)), Workload(prompt, output)
    nodes, stages, at = [], [], 0
    for i, (layers, bandwidth, intensity, overhead_ms, head_ms) in enumerate(rows):
        node = PoolNode(f"n{i}", 10**12, bandwidth, bandwidth * intensity, overhead_ms=overhead_ms, head_ms=head_ms)
        nodes.append(node)
        stages.append(Stage(node.node_id, at, at + layers))
        at += layers
    links = Links({}, near_ms=rtt_ms)
    links = replace(links, mbps={(a.node_id, b.node_id): mbps for a, b in combinations(nodes, 2)})
    chain = chain_of_nodes(model, links, nodes, [s.layers for s in stages], work)
    served = Simulation(model, Pool(tuple(nodes), links), Fixed(stages), [Arrival(0.0, prompt, output)], (), work).run()
    first_ms, done_ms = served.served[0].first_token_ms, served.served[0].done_ms
    assert first_ms == pytest.approx(chain.prompt_ms(prompt), rel=0.01)
    assert (done_ms - first_ms) / (output - 1) == pytest.approx(chain.step_ms(), rel=0.01)


class AtClient(Fixed):
    ends_at_client = True


def test_who_leaves_the_ends_to_clients_has_their_room_for_the_cache_and_none_of_their_time() -> None:
    model, nodes = mixture(24), machines("AAA")
    stages = [Stage(node.node_id, 8 * i, 8 * i + 8) for i, node in enumerate(nodes)]
    pool = Pool(tuple(nodes), LINKS)
    ours, theirs = (
        Simulation(model, pool, make(stages), [Arrival(0.0, 128, 32)], (), WORK) for make in (Fixed, AtClient)
    )
    room, more = ([host.kv_free_tokens or 0 for host in each._current_hosts()] for each in (ours, theirs))
    end = model.embedding_bytes // model.kv_token_bytes // 8
    assert [b - a for a, b in zip(room, more, strict=True)] == pytest.approx([end, 0, end], abs=1)
    head_ms = node_times(model, nodes[-1], WORK).head_ms
    assert head_ms > 0
    assert ours.run().mean_ms - theirs.run().mean_ms == pytest.approx(32 * head_ms)


def test_users_wait_for_one_another_but_all_are_served() -> None:
    few, many = (run(machines("AAA"), [Arrival(i * 1.0, 128, 32) for i in range(n)]) for n in (2, 40))
    assert len(many.served) == 40
    assert many.unserved == 0
    assert many.tokens_per_s > few.tokens_per_s
    assert many.mean_ms > few.mean_ms
    assert many.percentile_ms(99) >= many.mean_ms


def test_a_crash_restarts_its_requests_elsewhere() -> None:
    nodes = machines("AAAA")
    arrivals = [Arrival(i * 10.0, 128, 32) for i in range(20)]
    outcome = run(nodes, arrivals, [Happening(100.0, "crash", nodes[0])])
    assert len(outcome.served) == 20
    assert any(served.restarts for served in outcome.served)


def test_every_kind_of_change_at_once() -> None:
    nodes = machines("AABACD", ["eu", "us"])
    slow = replace(nodes[1], bandwidth_bytes_per_s=nodes[1].bandwidth / 10)
    happenings = [
        Happening(50.0, "leave", nodes[4]),
        Happening(90.0, "slow", slow),
        Happening(120.0, "join", machine(9, "A", "eu")),
        Happening(150.0, "crash", nodes[0]),
    ]
    arrivals = [Arrival(i * 10.0, 64 + i, 16) for i in range(30)]
    first, again = run(nodes, arrivals, happenings), run(nodes, arrivals, happenings)
    assert first == again
    assert len(first.served) + first.unserved == 30


def test_nothing_is_served_by_nobody() -> None:
    outcome = run(machines("A"), [Arrival(0.0, 10, 10)])
    assert outcome.unserved == 1
    assert outcome.tokens_per_s == 0.0


def test_any_scheduler_can_be_played() -> None:
    class Alone:
        def place(self, pool: Pool) -> Sequence[Stage]:
            return [Stage(pool.nodes[0].node_id, 0, 4)]

        def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
            return [Stage(hosts[0].node_id, 0, 4)]

    pool = Pool((machine(0, "A"),), LINKS)
    outcome = Simulation(mixture(4), pool, Alone(), [Arrival(0.0, 300, 5)]).run()
    assert outcome.served[0].tokens == 5


class Swap:
    """Two nodes that change places when the pool changes."""

    def __init__(self) -> None:
        self._placed = 0

    def place(self, pool: Pool) -> list[Stage]:
        self._placed += 1
        first, second = ("a", "b") if self._placed == 1 else ("b", "a")
        return [Stage(first, 0, 12), Stage(second, 12, 24)]

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        return route(24, hosts, LINKS, request).stages


def test_what_was_held_serves_until_the_new_is_loaded_though_the_pool_changes_again() -> None:
    nodes = [PoolNode(name, 10**11, 1e12, 1e14) for name in "abc"]
    arrivals = [Arrival(i * 200.0, 8, 2) for i in range(50)]

    def slowest_ms(*at_ms: float) -> float:
        joins = [Happening(ms, "join", nodes[2]) for ms in at_ms]
        pool = Pool(tuple(nodes[:2]), LINKS)
        return Simulation(mixture(24), pool, Swap(), arrivals, joins).run(3_600_000).percentile_ms(100)

    assert slowest_ms(1000.0, 2000.0) < 2 * slowest_ms(1000.0)


def test_ten_thousand_nodes() -> None:
    chance = random.Random(3)
    nodes = [machine(i, chance.choice("ABCD"), chance.choice(["eu", "us"])) for i in range(10_000)]
    outcome = run(nodes, [Arrival(i * 5.0, 64, 4) for i in range(5)])
    assert len(outcome.served) == 5


def test_a_request_that_nobody_has_room_for_holds_up_nobody() -> None:
    outcome = run(machines("AA"), [Arrival(0.0, 10**9, 16), Arrival(1.0, 128, 16)])
    assert (len(outcome.served), outcome.unserved) == (1, 1)


def test_a_node_that_joins_twice_is_there_once() -> None:
    nodes = machines("AAA")
    arrivals = [Arrival(i * 10.0, 128, 16) for i in range(30)]
    outcome = run(nodes, arrivals, [Happening(50.0, "join", nodes[0]), Happening(90.0, "join", nodes[1])])
    assert (len(outcome.served), outcome.unserved) == (30, 0)


@pytest.mark.parametrize("figures", [(float("nan"), 1, 1), (-1.0, 1, 1), (0.0, 0, 1), (0.0, 1, -3), (0.0, 1.5, 1)])
def test_a_request_that_cannot_be_is_refused(figures: tuple[float, int, int]) -> None:
    with pytest.raises(BadPool, match="arrival"):
        Arrival(*figures)


class Watched(TwoPhase):
    """Notes what loads it is told."""

    def __init__(self) -> None:
        super().__init__(mixture(24), "balanced", WORK)
        self.loads: list[float] = []

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        self.loads += [host.load for host in hosts]
        return super().route(hosts, changed, request)


def test_rounding_leaves_no_node_less_than_no_load() -> None:
    watched = Watched()
    nodes = Pool(tuple(machines("DDDDDDDDD")), LINKS)
    arrivals = [Arrival(400.0 * i, 128 + i, 16 + i) for i in range(40)]
    outcome = Simulation(mixture(24), nodes, watched, arrivals, (), WORK).run(3_600_000)
    assert outcome.unserved == 0
    assert min(watched.loads) == 0.0


class ByPrompt:
    """Requests with a long answer run all layers on one node; others run one of them there, the rest elsewhere."""

    def place(self, pool: Pool) -> Sequence[Stage]:
        return (Stage("a", 0, 24), Stage("b", 1, 24))

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        return (Stage("a", 0, 24),) if request.output_tokens > 100 else (Stage("a", 0, 1), Stage("b", 1, 24))


def test_sequences_that_run_one_layer_are_not_charged_for_those_that_others_run() -> None:
    nodes = tuple(replace(machine(i, "A"), node_id=name, memory_bytes=10**12) for i, name in enumerate("ab"))
    alone = [Arrival(0.0, 1, 200)]
    both = [*alone, *(Arrival(0.0, 1, 99) for _ in range(8))]

    def done_ms(arrivals: Sequence[Arrival]) -> float:
        links = Links(near_ms=0.01)
        outcome = Simulation(mixture(24), Pool(nodes, links), ByPrompt(), arrivals, (), WORK).run()
        return next(s.done_ms for s in outcome.served if s.tokens == 200)

    assert done_ms(both) < 1.5 * done_ms(alone)


@pytest.mark.parametrize(
    ("kinds", "counts", "near_ms", "users"),
    [
        ("AAA", [8, 8, 8], 1.0, 16),
        ("AABBCD", [6, 6, 5, 4, 2, 1], 1.0, 8),
        ("AABBCD", [6, 6, 5, 4, 2, 1], 1.0, 64),
        ("BB", [12, 12], 20.0, 32),
        ("ABCD", [9, 7, 5, 3], 90.0, 16),
        ("A", [24], 1.0, 16),
    ],
)
def test_the_rate_of_many_users_is_told_within_a_quarter(
    kinds: str, counts: list[int], near_ms: float, users: int
) -> None:
    model, work, links = mixture(24), Workload(256, 96, users), Links(near_ms=near_ms)
    nodes = [replace(node, memory_bytes=10**13) for node in machines(kinds)]
    ends = list(accumulate(counts))
    stages = [Stage(node.node_id, end - n, end) for node, n, end in zip(nodes, counts, ends, strict=True)]
    chance = random.Random(1)
    arrivals = [Arrival(0.0, chance.randint(32, 480), chance.randint(16, 176)) for _ in range(users * 5)]
    outcome = Simulation(model, Pool(tuple(nodes), links), Fixed(stages), arrivals, (), work, users).run()
    told = chain_of_nodes(model, links, nodes, counts, work).tokens_per_s(users, work)
    assert told == pytest.approx(outcome.steady_tokens_per_s, rel=0.25)


class Swapping:
    """Whoever is slower shall hold less; the other one has to load what it gives up."""

    def place(self, pool: Pool) -> Sequence[Stage]:
        slow = any(node.bandwidth < 1e12 for node in pool.nodes)
        return (Stage("a", 0, 2), Stage("b", 2, 4)) if not slow else (Stage("a", 0, 1), Stage("b", 1, 4))

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        try:
            return route(4, hosts, LINKS, request).stages
        except NoRoute:
            return None


def test_a_node_gives_layers_up_when_the_other_has_loaded_them_and_not_before() -> None:
    a, b = (replace(machine(i, "A"), node_id=name, memory_bytes=10**12) for i, name in enumerate("ab"))
    slow = Happening(1000.0, "slow", replace(a, bandwidth_bytes_per_s=a.bandwidth / 4))
    arrivals = [Arrival(900.0 + 100 * i, 16, 16) for i in range(20)]
    outcome = Simulation(mixture(4), Pool((a, b), LINKS), Swapping(), arrivals, [slow], WORK).run(3_600_000)
    assert outcome.unserved == 0
    assert outcome.percentile_ms(100) < 1000, "nobody waits until the layer is loaded"
