"""Predicted against measured times, to the first token and per output token, on swarms of 1, 2 and 3 real nodes of this
machine.

    python -m tests.bench.prediction [--tokens 48] [--requests 5] [--prompt-words 300]

Each node runs one thread on one core. In an uneven swarm the first node has a core of its own, and the others share
one with a process that only burns time, so that they are about half as fast. A prediction is made from the records that
the members publish, as `parallax plan` makes it: once before the first request, from what the nodes measured a few
seconds after they had loaded their layers, and once after the requests. For even swarms there is a third one, made from
the record of the 1-node swarm alone: what a person is told before the others have come.

Nothing is asserted: machines are shared and noisy. Needs Linux and two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from msgspec.structs import replace

from node.home import Home, write_private
from node.journal.state import State
from node.models import DEFAULT_REF, prepare
from node.models.progress import ignore_progress
from node.plan import predict
from node.plan.live.propose import propose
from node.plan.machines.pool import Workload
from node.plan.outlook.predict import Prediction
from node.wire.ids import NodeId
from node.wire.plans import Assignment, Plan
from node.wire.records import NodeRecord
from parallax_tui.headless.child_nodes import ChildNode, child_node
from parallax_tui.headless.node_connection import read_health, read_invitation, read_state
from tests.bench.control_client import open_client

WITHIN = 0.2
FIGURES = ("ttft_ms", "tpot_ms")
"""Time to the first token, and per output token; named alike in predictions and in an answer's own account."""
TIMED_AGAIN_S = 6.0
"""From when all are ready: nodes of one machine time their layers in turns (`node.live.remeasuring`), then tell."""
SETTLE_S = 3.0
"""Records are published once a second, round trips measured as often."""
OWN_CORE, SHARED_CORE = 0, 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One swarm."""

    name: str
    layers: str
    """Of each stage."""
    measured: dict[str, float]
    """`ttft_ms` and `tpot_ms`: medians over the requests."""
    prompt_tokens: int
    before: Prediction
    after: Prediction
    forecast: Prediction | None
    hops: str
    """Where a token's time went, by the answer's own account."""


def pin(process: subprocess.Popen[bytes], core: int) -> None:
    """What it starts from now on stays there too."""
    psutil.Process(process.pid).cpu_affinity([core])


@contextmanager
def burner(core: int) -> Iterator[None]:
    """Another program on that core, for as long as the block lasts."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        pin(process, core)
        try:
            yield
        finally:
            process.kill()


@contextmanager
def swarm(count: int, models: Path) -> Iterator[list[ChildNode]]:
    """`count` whole nodes; the first one has a core of its own."""
    root = Path(tempfile.mkdtemp(prefix="parallax-prediction-"))
    try:
        with ExitStack() as stack:
            nodes: list[ChildNode] = []
            for number in range(1, count + 1):
                folder = root / f"node-{number}"
                home = Home(folder, folder / "run", models)
                options = ["--name", folder.name, "--api", "off", "--no-discover", "--listen", "127.0.0.1:0"]
                options += ["--dtype", "fp32", "--threads", "1"]
                if nodes:
                    write_private(home.config, tomli_w.dumps({"join": [read_invitation(nodes[0].home)]}).encode())
                else:
                    options += ["--min-nodes", str(count)]
                environment = {"PARALLAX_HOME": str(folder), "PARALLAX_MODELS": str(models)}
                nodes.append(stack.enter_context(child_node(home, options, environment)))
                pin(nodes[-1].process, SHARED_CORE if number > 1 else OWN_CORE)
                nodes[-1].wait_until_it_answers()
            while read_health(nodes[0].home).status != "ok":
                for node in nodes:
                    if (problem := node.problem()) is not None:
                        raise SystemExit(problem)
                time.sleep(0.2)
            time.sleep(TIMED_AGAIN_S)
            yield nodes
    finally:
        shutil.rmtree(root, ignore_errors=True)


def records_of(state: State) -> dict[NodeId, NodeRecord]:
    return {node_id: view.record for node_id, view in state.nodes.items()}


def prediction(plan: Plan, records: dict[NodeId, NodeRecord], workload: Workload) -> Prediction:
    """What is told of the plan in force, were these its members."""
    proposal = propose(NodeId(plan.author), records, plan.model, plan.dtype, plan.facts, plan, plan.settings)
    return predict(proposal.allocation, workload)


def forecast(state: State, alone: NodeRecord | None, workload: Workload) -> Prediction | None:
    """The same of a swarm whose members are all like the only one that has been seen."""
    assert state.plan is not None
    if alone is None:
        return None
    clones = {
        NodeId(a.node_id): replace(alone, node_id=a.node_id, rtt_ms={}, overhead_ms=None)
        for a in state.plan.assignments
    }
    return prediction(state.plan, clones, workload)


def ask(client: Any, prompt: str, tokens: int) -> dict[str, Any]:
    """The node's own account of one answer."""
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": tokens}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return dict(answer.json())


def observe(
    name: str, count: int, models: Path, alone: NodeRecord | None, options: argparse.Namespace
) -> tuple[Outcome, NodeRecord]:
    """Start a swarm, predict, measure, predict again; with the first node's last record."""
    prompt = "Write a long story about " + " ".join(f"number {k} and" for k in range(options.prompt_words // 3))
    with swarm(count, models) as nodes, open_client(nodes[0].home.read_control(), timeout_s=None) as client:
        early = read_state(nodes[0].home)
        answers = [ask(client, prompt, options.tokens) for _ in range(options.requests)]
        time.sleep(SETTLE_S)
        late = read_state(nodes[0].home)
    assert early.plan is not None
    assert late.plan is not None
    workload = Workload(answers[0]["usage"]["prompt_tokens"], options.tokens)
    accounts = [answer["parallax"] for answer in answers]
    by_layer: Sequence[Assignment] = sorted(late.plan.assignments, key=lambda a: a.start)
    outcome = Outcome(
        name,
        "+".join(str(a.end - a.start) for a in by_layer),
        {what: statistics.median(account[what] for account in accounts) for what in FIGURES},
        workload.prompt_tokens,
        prediction(early.plan, records_of(early), workload),
        prediction(late.plan, records_of(late), workload),
        forecast(late, alone, workload),
        share_of_a_token(accounts),
    )
    return outcome, records_of(late)[late.self_id]


def share_of_a_token(accounts: Sequence[dict[str, Any]]) -> str:
    parts = ("compute", "wire", "queue", "serialise")
    sums = {p: statistics.median(sum(hop[f"{p}_ms"] for hop in a["hops"]) for a in accounts) for p in parts}
    back = statistics.median(a["return_ms"] for a in accounts)
    return "  ".join(f"{part} {ms:.2f}" for part, ms in {**sums, "back": back}.items())


def error_of(predicted: Prediction, outcome: Outcome, what: str) -> float:
    return float(getattr(predicted, what)) / outcome.measured[what] - 1


def compared(predicted: Prediction | None, outcome: Outcome, what: str) -> str:
    if predicted is None:
        return f"{'':17}"
    error = error_of(predicted, outcome, what)
    return f"{getattr(predicted, what):8.1f} {error:+6.0%}{' ' if abs(error) <= WITHIN else '!'} "


def report(outcomes: Sequence[Outcome]) -> None:
    print(
        f"\nms to the first token (TTFT), per output token (TPOT), error of the prediction; ! is beyond {WITHIN:.0%}\n"
    )
    print(f"{'swarm':<12}{'layers':<12}{'':<6}{'measured':>9}  {'before':>15}  {'after':>15}  {'from 1 node':>15}")
    for each in outcomes:
        for what in FIGURES:
            columns = " ".join(compared(p, each, what) for p in (each.before, each.after, each.forecast))
            print(f"{each.name:<12}{each.layers:<12}{what[:4].upper():<6}{each.measured[what]:9.1f} {columns}")
    print(f"\nprompts of {outcomes[0].prompt_tokens} tokens")
    print("\nwhere a token's time went, ms over all hops, and as predicted after the requests")
    for each in outcomes:
        shares = "  ".join(f"{share.milliseconds:.2f}" for share in each.after.parts)
        print(f"{each.name:<16}{each.hops}   predicted {shares}")
    for what in FIGURES:
        errors = [abs(error_of(p, o, what)) for o in outcomes for p in (o.before, o.after)]
        good = sum(error <= WITHIN for error in errors)
        told = f"{what[:4].upper()}: {good} of {len(errors)} predictions from the swarm's own records are within"
        print(f"{told} {WITHIN:.0%}; the worst is {max(errors):.0%} off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--prompt-words", type=int, default=300)
    options = parser.parse_args()
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed, and Linux, to pin nodes to them")
    models = Home.from_environment().models
    prepare(DEFAULT_REF, models, None, ignore_progress)
    outcomes: list[Outcome] = []
    alone: NodeRecord | None = None
    for count in (1, 2, 3):
        outcome, record = observe(f"{count} even", count, models, alone, options)
        alone = alone or record
        outcomes.append(outcome)
    with burner(SHARED_CORE):
        outcomes += [observe(f"{count} uneven", count, models, None, options)[0] for count in (2, 3)]
    report(outcomes)


if __name__ == "__main__":
    main()
