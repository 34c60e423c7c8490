"""From members' records to a pool: what was measured, what was set by hand, and what cannot be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.plan.live.from_records import SAME_MACHINE_MS, UNKNOWN_MS, USUAL_OVERHEAD_MS, pool_of_records
from node.plan.live.members import MEMORY_SHARE
from node.plan.machines.pool import PRIOR_BANDWIDTH, Pool
from node.wire.ids import NodeId
from node.wire.plans import Override, PlanSettings
from node.wire.records import Hardware, LayerLatency, NodeRecord
from tests.fakes.swarms import DESK, LOFT, STUDIO, record

GIB = 1024**3


def pool(*records: NodeRecord, overrides: tuple[Override, ...] = ()) -> Pool:
    return pool_of_records(records, PlanSettings(overrides=overrides)).pool


def hardware(**changes: object) -> Hardware:
    fields: dict[str, object] = {"memory_bytes": 8 * GIB, "bandwidth_bytes_per_s": 2e10, "matmul_flops_per_s": 1e11}
    return Hardware("cpu", "a processor", cores=8, **{**fields, **changes})  # type: ignore[arg-type]


def test_a_record_becomes_a_node_with_all_that_it_measured() -> None:
    told = record(
        DESK, layer_latency=LayerLatency(3.0, 2.0, 4.0, sequences=3), head_ms=5.0, overhead_ms=0.5, region="home"
    )
    (node,) = pool(told).nodes
    assert node.layer_ms == ((3, 3.0),), "the mean: what an answer's tokens take"
    assert (node.head_ms, node.overhead_ms, node.region, node.name) == (5.0, 0.5, "home", "desk")
    assert node.memory_bytes == int(3 * GIB // 2 * MEMORY_SHARE)


def test_one_long_pause_is_no_speed() -> None:
    (node,) = pool(record(DESK, layer_latency=LayerLatency(mean_ms=9.0, p50_ms=2.0, p95_ms=2.5))).nodes
    assert node.layer_ms == ((1, 2.5),)


def test_what_is_set_by_hand_reaches_the_pool() -> None:
    by_hand = (
        Override(DESK, layers=(0, 5)),
        Override(STUDIO, memory_bytes=GIB // 8, duty="drain"),
        Override(LOFT, duty="exclude"),
    )
    desk, loft, studio = sorted(pool(*map(record, (DESK, STUDIO, LOFT)), overrides=by_hand).nodes, key=lambda n: n.name)
    assert (desk.pinned, desk.barred) == ((0, 5), "")
    assert (studio.memory_bytes, studio.barred) == (GIB // 8, "drains")
    assert loft.barred == "excluded by hand"


def test_the_owners_range_goes_first_and_the_smaller_cap_binds() -> None:
    far = (Override(DESK, layers=(0, 5), memory_bytes=4 * GIB),)
    (node,) = pool(record(DESK, pinned_layers=(3, 9), memory_cap_bytes=2 * GIB), overrides=far).nodes
    assert (node.pinned, node.memory_bytes) == ((3, 9), 2 * GIB)
    (node,) = pool(record(DESK, memory_cap_bytes=8 * GIB), overrides=far).nodes
    assert node.memory_bytes == 4 * GIB
    (node,) = pool(record(DESK), overrides=far).nodes
    assert node.memory_bytes == int(3 * GIB // 2 * MEMORY_SHARE), "a cap gives no memory that the node has not got"


def test_figures_that_cannot_be_are_taken_as_not_measured_and_told_of() -> None:
    absurd = record(
        DESK,
        hardware=hardware(bandwidth_bytes_per_s=1e18, matmul_flops_per_s=1e-300),
        head_ms=1e9,
        overhead_ms=1e8,
        layer_latency=LayerLatency(1e9, 1e9, 1e9),
    )
    read = pool_of_records([absurd, record(STUDIO)])
    desk = next(node for node in read.pool.nodes if node.node_id == DESK)
    assert (desk.bandwidth, desk.flops_per_s, desk.head_ms, desk.overhead_ms, desk.layer_ms) == (
        PRIOR_BANDWIDTH,
        None,
        None,
        USUAL_OVERHEAD_MS,
        (),
    )
    assert len(read.problems) == 5
    assert all("desk" in problem for problem in read.problems)
    for key in ("bandwidth", "flops", "head_ms", "overhead_ms", "layer_latency"):
        assert any(key in problem for problem in read.problems)


def test_a_node_whose_memory_cannot_be_is_left_out_and_the_others_stay() -> None:
    read = pool_of_records([record(DESK, memory_cap_bytes=2**53), record(STUDIO)])
    assert [node.node_id for node in read.pool.nodes] == [STUDIO]
    assert "memory" in read.problems[0]


def test_a_failed_member_holds_nothing_and_says_why() -> None:
    (node,) = pool(record(DESK, state="failed", problem="the disk is full")).nodes
    assert node.barred == "failed: the disk is full"


def test_round_trips_are_measured_or_as_near_as_machines_and_regions_are() -> None:
    read = pool(
        record(DESK, machine_id="one", region="home", rtt_ms={}),
        record(STUDIO, machine_id="one", rtt_ms={LOFT: 40.0}),
        record(LOFT, machine_id="two", region="home", rtt_ms={STUDIO: 30.0}),
        replace(record(DESK, machine_id="three", region="away"), node_id=NodeId("far")),
    )
    by_id = {node.node_id: node for node in read.nodes}
    desk, studio, loft, far = (by_id[node] for node in (DESK, STUDIO, LOFT, NodeId("far")))
    assert read.links.rtt(desk, studio) == SAME_MACHINE_MS, "one machine, not measured"
    assert read.links.rtt(studio, loft) == 30.0, "the smaller of what both ends say"
    assert read.links.rtt(desk, loft) < 5.0, "one region, not measured"
    assert read.links.rtt(desk, far) == UNKNOWN_MS


@given(
    st.builds(
        Hardware,
        device=st.just("cpu"),
        device_name=st.just("x"),
        memory_bytes=st.integers(0, 2**53),
        bandwidth_bytes_per_s=st.floats(0, 1e18),
        matmul_flops_per_s=st.floats(0, 1e18),
        cores=st.just(1),
    ),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
)
def test_no_record_that_the_wire_lets_through_breaks_the_pool(
    given_hardware: Hardware, layer: float, head: float, rtt: float
) -> None:
    told = record(DESK, hardware=given_hardware, layer_latency=LayerLatency(layer, layer, layer), head_ms=head)
    read = pool_of_records([told, record(STUDIO, rtt_ms={DESK: rtt})])
    assert STUDIO in {node.node_id for node in read.pool.nodes}


def test_what_a_prompt_takes_is_taken_as_measured_where_it_can_be() -> None:
    (node,) = pool(record(DESK, prompt_row_ms=0.25)).nodes
    assert node.prompt_row_ms == 0.25
    read = pool_of_records([record(DESK, prompt_row_ms=1e9)])
    assert read.pool.nodes[0].prompt_row_ms is None
    assert "prompt_row_ms" in read.problems[0]
