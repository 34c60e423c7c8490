"""The rivals do what their papers and sources say."""

from __future__ import annotations

from node.plan.machines.pool import Links, Pool
from node.plan.routing.router import Host, Request
from tests.bench.rivals.exo import Exo
from tests.bench.rivals.parallax_paper import ParallaxPaper
from tests.bench.rivals.parallax_release import ParallaxRelease
from tests.bench.rivals.petals import Petals
from tests.bench.rivals.same_memory import capacity
from tests.bench.scheduling.loads import kept_up
from tests.bench.simulate import Outcome, Served
from tests.fakes.pools import machine, machines, mixture

MODEL = mixture(24)
FAR = Links({("eu", "us"): 100.0})


def test_exo_takes_the_fewest_nodes_that_hold_the_model() -> None:
    nodes = machines("DDCABA")
    ring = Exo(MODEL).place(Pool(tuple(nodes), Links()))
    assert {stage.node_id for stage in ring} == {"n0003A", "n0005A"}
    assert (ring[0].start, ring[-1].end) == (0, 24)


def test_the_release_lets_nodes_that_complete_no_pipeline_stand_by() -> None:
    nodes = machines("AAD")
    held = {stage.node_id for stage in ParallaxRelease(MODEL).place(Pool(tuple(nodes), Links()))}
    assert held == {"n0000A", "n0001A"}


def test_the_papers_chains_stay_in_their_region_and_left_over_nodes_join_where_layers_lack() -> None:
    nodes = [machine(i, "A", "eu" if i < 3 else "us") for i in range(6)]
    stages = ParallaxPaper(MODEL).place(Pool(tuple(nodes), FAR))
    assert {stage.node_id for stage in stages} == {node.node_id for node in nodes}
    for region in ({"n0000A", "n0001A", "n0002A"}, {"n0003A", "n0004A", "n0005A"}):
        covered = {layer for s in stages if s.node_id in region for layer in range(s.start, s.end)}
        assert covered == set(range(24))


def test_the_papers_route_leaves_a_loaded_node_and_uses_parts_of_ranges() -> None:
    paper = ParallaxPaper(mixture(6))
    hosts = [Host("a", 0, 4, 1.0), Host("b", 2, 6, 1.0), Host("c", 2, 4, 1.0, load=9.0)]
    paper._links = Links({("a", "b"): 2.0, ("a", "c"): 0.1, ("b", "c"): 0.1})
    chain = paper.route(hosts, True, Request())
    assert chain is not None
    assert [stage.node_id for stage in chain] == ["a", "b"]
    loaded = paper.route([Host("a", 0, 4, 1.0, load=5.0), *hosts[1:]], True, Request())
    assert loaded is not None
    assert (loaded[0].end, loaded[1].start) == (2, 2)


def test_petals_spreads_over_equal_servers_and_leaves_the_ends_to_the_client() -> None:
    petals = Petals(MODEL)
    nodes = machines("AAAA")
    stages = petals.place(Pool(tuple(nodes), Links()))
    assert all(stage.layers == capacity(MODEL, node) for stage, node in zip(stages, nodes, strict=True))
    hosts = [Host(s.node_id, s.start, s.end, 1.0) for s in stages]
    chains = {tuple(s.node_id for s in petals.route(hosts, True, Request(spread=n)) or ()) for n in range(40)}
    assert len(chains) > 1


def test_petals_moves_where_a_block_would_be_served_much_better() -> None:
    petals = Petals(mixture(4))
    nodes = machines("AAA")
    petals.place(Pool(tuple(nodes), Links()))
    assert not any(petals._should_move({n.node_id: n for n in nodes}, n.node_id) for n in nodes)


def test_a_queue_that_grows_is_not_called_slow_but_not_sustained() -> None:
    steady = tuple(Served(i * 10.0, 5.0, 100.0, 10, 0) for i in range(30))
    growing = tuple(Served(i * 10.0, 5.0, 100.0 + 50 * i, 10, 0) for i in range(30))
    assert kept_up(Outcome(steady, 0, 400.0))
    assert not kept_up(Outcome(growing, 0, 400.0))
    assert not kept_up(Outcome(steady, 1, 400.0))
    assert not kept_up(Outcome((), 0, 0.0))
