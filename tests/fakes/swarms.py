"""Made-up swarms for screens and view models: the same three machines everywhere."""

from __future__ import annotations

from node.journal.state import ModelStatus, NodeView, RequestView, State
from node.wire.events import HopLatency, Notice
from node.wire.frames import Hop
from node.wire.ids import NodeId, RequestId
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Assignment, Override, Plan, PlanSettings, Standby
from node.wire.records import Hardware, HeldRange, LayerLatency, NodeRecord

GIB = 1024**3
MODEL = ModelRef("smollm2-135m-instruct", "default", "0" * 64)
FACTS = ModelFacts(30, 7_000_000, 56_000_000, 56_000_000, 768, 576, 49_152, 8192)
DESK, STUDIO, LOFT = (NodeId(f"12D3KooWexample{name}") for name in ("desk0001", "studio02", "loft0003"))
RANGES = {DESK: (0, 10), STUDIO: (10, 20), LOFT: (20, 30)}
WEIGHTS = Plan(1, DESK, MODEL, "bfloat16", FACTS, ()).weights
NAMES = {DESK: "desk", STUDIO: "studio", LOFT: "loft"}


def record(node_id: NodeId, **changes: object) -> NodeRecord:
    """A serving node of the three."""
    start, end = RANGES[node_id]
    fields: dict[str, object] = {
        "node_id": node_id,
        "name": NAMES[node_id],
        "seq": 1,
        "ttl_s": 30.0,
        "machine_id": "m",
        "addresses": (),
        "software": "parallax 0.1.0",
        "hardware": Hardware("cpu", "a processor", 3 * GIB // 2, 2e10, 1e11, 8),
        "backend": "ort",
        "quantisation": "Q4_1",
        "kv_tokens_total": 20_480,
        "kv_tokens_used": 812,
        "held": (HeldRange(start, end, "ready", 1, WEIGHTS),),
        "plan_epoch": 1,
        "layer_latency": LayerLatency(0.32, 0.3, 0.5),
        "rtt_ms": {other: 1.2 for other in RANGES if other != node_id},
        "state": "serving",
    }
    return NodeRecord(**{**fields, **changes})  # type: ignore[arg-type]


def plan(*members: NodeId) -> Plan:
    """Ten layers each."""
    return Plan(1, DESK, MODEL, "bfloat16", FACTS, tuple(Assignment(m, *RANGES[m]) for m in members or RANGES))


def steered() -> State:
    """Desk and studio serve; loft drains and stands by, and people have set more by hand."""
    half = {DESK: (0, 15), STUDIO: (15, 30)}
    overrides = (Override(DESK, (0, 15)), Override(LOFT, duty="drain"), Override(STUDIO, None, GIB))
    members = {n: record(n, held=(HeldRange(*held, "ready", 3, WEIGHTS),)) for n, held in half.items()}
    members[LOFT] = record(LOFT, held=(), state="standby", layer_latency=None)
    decided = Plan(
        3,
        DESK,
        MODEL,
        "bfloat16",
        FACTS,
        tuple(Assignment(n, *held) for n, held in half.items()),
        (Standby(LOFT, "loft holds nothing: it drains", barred=True),),
        "latency",
        PlanSettings("latency", overrides),
        "1 pipeline of up to 2 stages; the fastest gives a token in 9.1 ms, its share of the prompt included",
    )
    return three_nodes(plan=decided, nodes={n: NodeView(r, 0.0) for n, r in members.items()})


def three_nodes(**changes: object) -> State:
    """All three serve, asked through desk; one request has been answered."""
    fields: dict[str, object] = {
        "self_id": DESK,
        "seq": 10,
        "nodes": {node_id: NodeView(record(node_id), 0.0) for node_id in RANGES},
        "plan": plan(),
        "model": ModelStatus(MODEL.name, "ready"),
        "requests": (answered(),),
        "notices": (Notice("info", "the plan of epoch 1 is in force"),),
    }
    return State(**{**fields, **changes})  # type: ignore[arg-type]


def one_node(**changes: object) -> State:
    """A machine alone with all layers."""
    alone = record(DESK, held=(HeldRange(0, 30, "ready", 1, WEIGHTS),), rtt_ms={})
    whole = Plan(1, DESK, MODEL, "bfloat16", FACTS, (Assignment(DESK, 0, 30),))
    fields: dict[str, object] = {
        "self_id": DESK,
        "seq": 3,
        "nodes": {DESK: NodeView(alone, 0.0)},
        "plan": whole,
        "model": ModelStatus(MODEL.name, "ready"),
    }
    return State(**{**fields, **changes})  # type: ignore[arg-type]


def hops() -> tuple[HopLatency, ...]:
    """Studio is slow."""
    return (
        HopLatency(DESK, "desk", 0, 10, 0.1, 0.2, 2.9, 0.4),
        HopLatency(STUDIO, "studio", 10, 20, 1.1, 0.6, 8.4, 0.7),
        HopLatency(LOFT, "loft", 20, 30, 0.9, 0.1, 2.2, 0.5),
    )


def answered() -> RequestView:
    """One finished request over all three."""
    chain = tuple(Hop(node_id, *RANGES[node_id]) for node_id in RANGES)
    return RequestView(RequestId("chatcmpl-1"), 0.0, 12, chain, 128, hops(), 0.6, "stop", 420.0, 18.7)
