"""Decode speed and time to first token of 1, 2 and 3 local nodes, as ratios to transformers' `generate`.

Greedy; of one node also with the model's recommended sampling, which is what a request gets that asks for nothing, and
with several requests at a time, whose tokens per second are added up.

    python -m tests.bench.pipeline [--tokens 48] [--rounds 5] [--prompt-words 90]

Everything is measured in one run, in turns (baseline, 1 node, 2 nodes, 3 nodes, again), with the same weights in fp32
and as many threads in all as the machine has cores; medians are printed. The floor of a decode step is its bytes over
the memory bandwidth (GB/s) that the first node itself measured for that very run; `generate` borrows that of one node.
Nothing is asserted: machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from node.home import Home
from node.models import DEFAULT_REF, prepare
from node.models.progress import ignore_progress
from parallax_tui.headless.child_nodes import LocalNodes, local_nodes
from parallax_tui.headless.node_connection import read_health, read_state
from tests.bench.control_client import open_client

BASELINE = """
import json, sys, time
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from node.engine.torch.checkpoint import open_checkpoint  # the folder may hold a GGUF file
from transformers.generation.streamers import BaseStreamer

torch.set_num_threads(int(sys.argv[2]))
folder = Path(sys.argv[1])
config = AutoConfig.from_pretrained(folder)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
checkpoint = open_checkpoint(folder, config)
model.load_state_dict(dict(checkpoint.read(set(checkpoint.names()))), strict=False)
model.tie_weights()

class Stamps(BaseStreamer):
    def __init__(self): self.times = []
    def put(self, value): self.times.append(time.perf_counter())
    def end(self): pass

print("ready", flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    ids = torch.tensor([ask["ids"]])
    stamps = Stamps()
    start = time.perf_counter()
    with torch.inference_mode():
        count = {"max_new_tokens": ask["tokens"], "min_new_tokens": ask["tokens"]}
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, do_sample=False, streamer=stamps, pad_token_id=0, **count)
    times = stamps.times[1:]  # the first put is the prompt
    print(json.dumps({"ttft_s": times[0] - start, "tpot_s": (times[-1] - times[0]) / (len(times) - 1)}), flush=True)
"""


@dataclass
class Samples:
    """What one way of running gave, round by round."""

    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    bandwidth_bytes_per_s: list[float] = field(default_factory=list)
    """As the first node measured it for this round; none for `generate`."""

    def add(self, ttft_s: float, tpot_s: float) -> None:
        self.ttft_s.append(ttft_s)
        self.tpot_s.append(tpot_s)


@contextmanager
def baseline(folder: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    """`generate` in a process of its own, which answers a line with a line."""
    command = [sys.executable, "-c", BASELINE, str(folder), str(threads)]
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def ask_baseline(process: subprocess.Popen[str], ids: list[int], tokens: int) -> tuple[float, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"ids": ids, "tokens": tokens}) + "\n")
    process.stdin.flush()
    reply = json.loads(process.stdout.readline())
    return reply["ttft_s"], reply["tpot_s"]


AT_ONCE = 4


def ask_at_once(client: httpx.Client, prompt: str, tokens: int) -> tuple[float, float]:
    """Mean TTFT of `AT_ONCE` requests, and the time per token of all of them together."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(ask_nodes, client, f"{number}. {prompt}", tokens) for number in range(AT_ONCE)]
        answers = [each.result() for each in asked]
    return statistics.fmean(ttft_s for ttft_s, _, _ in answers), 1 / sum(1 / tpot_s for _, tpot_s, _ in answers)


def ask_nodes(
    client: httpx.Client, prompt: str, tokens: int, *, sampled: bool = False
) -> tuple[float, float, dict[str, Any]]:
    """TTFT and TPOT as the client sees them, and the node's own account."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
    }
    body |= {"seed": 1} if sampled else {"temperature": 0}
    start = time.perf_counter()
    stamps: list[float] = []
    account: dict[str, Any] = {}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if chunk["choices"][0]["delta"].get("content"):
                    stamps.append(time.perf_counter())
                account = chunk.get("parallax", account)
    return stamps[0] - start, account["tpot_ms"] / 1e3, account


def wait_until_whole(nodes: LocalNodes) -> None:
    while read_health(nodes.home).status != "ok":
        if (problem := nodes.problem()) is not None:
            raise SystemExit(problem)
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-words", type=int, default=90)
    options = parser.parse_args()
    models = Home.from_environment().models
    folder = prepare(DEFAULT_REF, models, None, ignore_progress)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    prompt = "Write a long story about " + " ".join(f"number {k} and" for k in range(options.prompt_words // 3))
    from node.models import ChatModel

    ids = ChatModel.load(folder).render([{"role": "user", "content": prompt}])
    names = ("generate", "1 node", "2 nodes", "3 nodes", "1 sampled", f"1, {AT_ONCE} asked")
    samples = {name: Samples() for name in names}
    accounts: dict[str, dict[str, Any]] = {}
    for _ in range(options.rounds):
        with baseline(folder, threads) as process:
            ask_baseline(process, ids, 4)
            samples["generate"].add(*ask_baseline(process, ids, options.tokens))
        for count in (1, 2, 3):
            name = f"{count} node{'s' if count > 1 else ''}"
            with ExitStack() as stack:
                nodes = stack.enter_context(local_nodes(count, models, ["--dtype", "fp32"]))
                wait_until_whole(nodes)
                client = stack.enter_context(open_client(nodes.home.read_control(), timeout_s=None))
                ask_nodes(client, prompt, 4)
                ttft_s, tpot_s, accounts[name] = ask_nodes(client, prompt, options.tokens)
                samples[name].add(ttft_s, tpot_s)
                if count == 1:
                    samples["1 sampled"].add(*ask_nodes(client, prompt, options.tokens, sampled=True)[:2])
                    samples[f"1, {AT_ONCE} asked"].add(*ask_at_once(client, prompt, options.tokens))
                state = read_state(nodes.home)
                own = state.nodes[state.self_id].record.hardware
                assert own is not None
                samples[name].bandwidth_bytes_per_s.append(own.bandwidth_bytes_per_s)
    report(samples, accounts, len(ids), threads, state)


def report(
    samples: dict[str, Samples], accounts: dict[str, dict[str, Any]], prompt_tokens: int, threads: int, state: Any
) -> None:
    hardware = state.nodes[state.self_id].record.hardware
    facts = state.plan.facts
    weight_bytes = facts.layers * facts.layer_bytes + facts.head_bytes
    print(f"prompt {prompt_tokens} tokens, fp32, {threads} threads in all, {hardware.device_name}")
    print(f"floor of a decode step: {weight_bytes / 1e6:.0f} MB over the GB/s that the node measured\n")
    print(
        f"{'':10}  {'tok/s':>8}  {'ratio':>7}  {'GB/s':>7}  {'x floor':>8}  {'TTFT ms':>9}  {'ratio':>7}"
        "    hops' share of a token, ms"
    )
    base = samples["generate"]
    alone = statistics.median(samples["1 node"].bandwidth_bytes_per_s)
    for name, each in samples.items():
        tpot_s, ttft_s = statistics.median(each.tpot_s), statistics.median(each.ttft_s)
        speed_ratio = statistics.median(b / a for a, b in zip(each.tpot_s, base.tpot_s, strict=True))
        ttft_ratio = statistics.median(a / b for a, b in zip(each.ttft_s, base.ttft_s, strict=True))
        bandwidth = statistics.median(each.bandwidth_bytes_per_s or [alone])
        floor_s = weight_bytes / bandwidth
        print(
            f"{name:10}  {1 / tpot_s:8.1f}  {speed_ratio:7.2f}  {bandwidth / 1e9:7.1f}  {tpot_s / floor_s:8.1f}"
            f"  {ttft_s * 1e3:9.0f}  {ttft_ratio:7.2f}    {share_of_a_token(accounts.get(name))}"
        )


def share_of_a_token(account: dict[str, Any] | None) -> str:
    """Compute, wire, queue and serialise, in ms per token over all hops."""
    if account is None:
        return ""
    sums = {
        part: sum(hop[f"{part}_ms"] for hop in account["hops"]) for part in ("compute", "wire", "queue", "serialise")
    }
    sums["wire"] += account["return_ms"]
    return "  ".join(f"{part} {ms:5.1f}" for part, ms in sums.items())


if __name__ == "__main__":
    main()
