"""How long a chain of stages takes: the one answer that placement, routing, prediction and simulator give.

A **decode step** is a ring trip: first stage → … → tail → first stage, where the next one begins at once.

    loop = Σ stages (decode + overhead) + LM head + Σ hops (way + bytes / rate) + way back

What the tail sends to the head travels beside the next step: it delays an answer once, as head → first does. A
**prompt** goes in chunks of CHUNK_TOKENS, which overlap: while one is at a stage, the next is at the stage before, or
on the link between. So it takes one chunk's way through everything, then one more chunk for each that follows at the
slowest stage or link:

    prompt = Σ (chunk + overhead) + Σ (way + chunk's bytes / rate) + LM head + (chunks - 1) · slowest

(exact, also for a shorter last chunk: a chain of first-come-first-served servers is a longest path through a grid of
servers and chunks). **Many users** run in one batch per stage: min(m / around, b / slowest), b = m / stages.

A chain knows times, not machines; `node_times` gives them for a node and a model, from the roofline and what the node
has measured. Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from node.plan.costs.model import ModelCost
from node.plan.costs.roofline import (
    StepCost,
    decode_cost,
    fitted_efficiency,
    fitted_head_efficiency,
    prompt_chunk_cost,
)
from node.plan.machines.pool import Links, Located, PoolNode, Workload

CHUNK_TOKENS = 128
"""Tokens of one prompt chunk: long enough that a matrix product pays, short enough that stages overlap and a decode
step that waits behind it waits for tens of milliseconds."""
LARGE_BATCH = 16
"""Sequences of the larger of the two steps between which a step's time is interpolated."""

MET = 0.3
"""Of the variance of a stage's time: what others wait behind the chunk of a prompt, see `ChainTime.tokens_per_s`."""


class StageTime(NamedTuple):
    """One stage's times: all its layers together."""

    decode_ms: float
    """A step of one token of one sequence."""
    chunk_ms: float
    """A step of CHUNK_TOKENS tokens of a prompt."""
    overhead_ms: float = 0.0
    """Of every step, outside the layers: the way to the engine and back, checks, packing. The engine waits for it."""
    head_ms: float = 0.0
    """LM head and sampling of one sequence; of the last stage, else 0."""
    large_decode_ms: float = 0.0
    """A step of LARGE_BATCH sequences; 0: as one of one."""
    large_head_ms: float = 0.0
    """Likewise."""
    node: str = ""
    """Stages of one node share it: it works for one at a time. Empty: a node of its own."""

    def prompt_step_ms(self, tokens: float) -> float:
        """A chunk of `tokens` tokens, overhead included: in proportion, but no less than a token's."""
        return max(self.decode_ms, self.chunk_ms * tokens / CHUNK_TOKENS) + self.overhead_ms

    def batch_step_ms(self, batch: float) -> float:
        """A decode step of `batch` sequences, overhead and head included: linear in the batch."""
        part = (batch - 1) / (LARGE_BATCH - 1)
        decode = self.decode_ms + max(0.0, self.large_decode_ms - self.decode_ms) * part
        return decode + self.head_ms + max(0.0, self.large_head_ms - self.head_ms) * part + self.overhead_ms


class HopTime(NamedTuple):
    """The way between two stages. Bytes go out one after another; what is under way does not hold up what follows."""

    way_ms: float
    """Of an empty message."""
    byte_ms: float = 0.0
    """Per byte: 8 / (1000 · Mbit/s)."""


Server = tuple[str, float]
"""A stage or a link: its node, empty for a link, and how long a chunk keeps it."""
NO_HOP = HopTime(0.0, 0.0)
"""From a node to itself."""


def hop_time(links: Links, a: Located, b: Located) -> HopTime:
    """From `a` to `b`."""
    if a.node_id == b.node_id:
        return NO_HOP
    return HopTime(links.rtt(a, b) * links.trips, 8 / (links.rate_mbps(a, b) * 1000))


@dataclass(frozen=True, slots=True)
class ChainTime:
    """A chain's times. `hops[i]` leads out of `stages[i]`; the last one from the tail back to the first stage."""

    stages: Sequence[StageTime]
    hops: Sequence[HopTime]
    """As many as stages."""
    token_bytes: float = 0.0
    """Activations of one token between two stages."""
    to_first_ms: float = 0.0
    """Way of an empty message from the request's head to the first stage; paid once."""
    to_head_ms: float = 0.0
    """From the tail to the head; paid once."""

    def step_ms(self) -> float:
        """The loop: one user's time per output token while tokens come (TPOT)."""
        total = 0.0
        for decode_ms, _, overhead_ms, head_ms, _, _, _ in self.stages:
            total += decode_ms + overhead_ms + head_ms
        sent = self.token_bytes
        for way_ms, byte_ms in self.hops:
            total += way_ms + byte_ms * sent
        return total - self.hops[-1].byte_ms * sent  # a token's number goes back, no activations

    def prompt_ms(self, tokens: int) -> float:
        """From the head's first send until a prompt's first output token is back there (TTFT, in an idle swarm)."""
        chunks = max(1, -(-tokens // CHUNK_TOKENS))
        last = tokens - (chunks - 1) * CHUNK_TOKENS
        ways = self.to_first_ms + self.to_head_ms + sum(hop.way_ms for hop in self.hops[:-1])
        shorter = self._servers(max(1, last))
        shorter[-1] = shorter[-1][0], shorter[-1][1] + self.stages[-1].head_ms
        if chunks == 1:
            return ways + sum(ms for _, ms in shorter)
        # The longest path: through some servers with full chunks, at one of them on to the last, then on with that one.
        servers = self._servers(CHUNK_TOKENS)
        through, slowest, after, longest = 0.0, 0.0, sum(ms for _, ms in shorter), 0.0
        for (_, full_ms), (_, last_ms) in zip(servers, shorter, strict=True):
            through += full_ms
            slowest = max(slowest, full_ms)
            longest = max(longest, through + (chunks - 2) * slowest + after)
            after -= last_ms
        return ways + max(longest, self._visited_again_ms(servers, shorter, chunks))

    @staticmethod
    def _visited_again_ms(servers: Sequence[Server], shorter: Sequence[Server], chunks: int) -> float:
        """What the busiest node needs that runs several stages, one at a time; 0 where none does."""
        visits: dict[str, list[int]] = {}
        for i, (node, _) in enumerate(servers):
            visits.setdefault(node, []).append(i)
        longest = 0.0
        for node, at in visits.items():
            if node and len(at) > 1:
                around = sum(ms for _, ms in (*servers[: at[0]], *shorter[at[-1] + 1 :]))
                inside = sum((chunks - 1) * servers[i][1] + shorter[i][1] for i in at)
                longest = max(longest, around + inside)
        return longest

    def slowest_ms(self) -> float:
        """What the slowest stage or link takes for a chunk of a prompt."""
        return max(ms for _, ms in self._servers(CHUNK_TOKENS))

    def answer_ms(self, prompt_tokens: int, output_tokens: int) -> float:
        """Until the last of `output_tokens` is at the head."""
        return self.prompt_ms(prompt_tokens) + max(0, output_tokens - 1) * self.step_ms()

    def token_ms(self, work: Workload) -> float:
        """One user's mean time per output token, the prompt's time included: T, which placement and routing weigh."""
        return self.answer_ms(work.prompt_tokens, work.output_tokens) / work.output_tokens

    def tokens_per_s(self, running: float, work: Workload) -> float:
        """Output tokens per second of `running` sequences at a time, their prompts' work included.

        They go around in one batch per stage, or one at a time where they are fewer than stages: no faster than a batch
        comes around, and no faster than the slowest stage or link lets one batch through. Now and then a batch has a
        chunk of a prompt, which takes many steps' time, and others wait behind it: as many as are on their way, for
        MET of the variance of what a stage takes, never longer than if all went one by one. (Pollaczek and Khinchine
        have a half; fitted to 110 chains in the simulator, of which nine in ten are then told within 15 %.)
        """
        batch = max(1.0, running / len(self.stages))
        prompt_share = work.prompt_tokens / work.output_tokens
        chunks = batch * prompt_share / CHUNK_TOKENS
        around, slowest, variance = 0.0, 0.0, 0.0
        often = min(1.0, chunks)
        busy: dict[str, float] = {}
        for i, (stage, hop) in enumerate(zip(self.stages, self.hops, strict=True)):
            at_stage = stage.batch_step_ms(batch) + chunks * stage.chunk_ms
            is_back = i == len(self.stages) - 1
            on_link = 0.0 if is_back else batch * (1 + prompt_share) * self.token_bytes * hop.byte_ms
            around += at_stage + on_link + hop.way_ms
            variance += often * (1 - often) * stage.chunk_ms**2
            if stage.node:
                at_stage = busy[stage.node] = busy.get(stage.node, 0.0) + at_stage
            slowest = max(slowest, at_stage, on_link)
        around += max(0.0, running / batch - 1) * min(around, MET * variance / around)
        return 1000 * min(running / around, batch / slowest)

    def _servers(self, tokens: float) -> list[Server]:
        """Stages and links in order: the node, and how long a chunk of `tokens` tokens keeps it."""
        servers = []
        for stage, hop in zip(self.stages, self.hops, strict=True):
            servers.append((stage.node, stage.prompt_step_ms(tokens)))
            servers.append(("", tokens * self.token_bytes * hop.byte_ms))
        return servers[:-1]


class NodeTimes(NamedTuple):
    """One node's times in one model: per layer, and around the layers."""

    layer_ms: float
    """A decode step of one token."""
    chunk_layer_ms: float
    """A step of CHUNK_TOKENS tokens of a prompt."""
    head_ms: float
    """LM head and sampling of one sequence."""
    overhead_ms: float
    """Of every step."""
    large_layer_ms: float
    """A decode step of LARGE_BATCH sequences."""
    large_head_ms: float
    node: str

    def stage(self, layers: int, *, last: bool) -> StageTime:
        """A stage of `layers` layers; the `last` one has the head."""
        return StageTime(
            layers * self.layer_ms,
            layers * self.chunk_layer_ms,
            self.overhead_ms,
            self.head_ms if last else 0.0,
            layers * self.large_layer_ms,
            self.large_head_ms if last else 0.0,
            self.node,
        )


def node_times(model: ModelCost, node: PoolNode, work: Workload) -> NodeTimes:
    """What `node` takes for `model`, its measurements counted. A decode step sees the prompt and half of the answer."""
    efficiency, head_efficiency = fitted_efficiency(model, node), fitted_head_efficiency(model, node)
    one, many, chunk = _steps(model, work.prompt_tokens, work.output_tokens)
    return NodeTimes(
        one.layer_ms(node, efficiency),
        chunk.layer_ms(node, efficiency) if node.prompt_row_ms is None else node.prompt_row_ms * CHUNK_TOKENS,
        one.head_ms(node, head_efficiency),
        node.overhead_ms,
        many.layer_ms(node, efficiency),
        many.head_ms(node, head_efficiency),
        node.node_id,
    )


@lru_cache(maxsize=32)
def _steps(model: ModelCost, prompt_tokens: int, output_tokens: int) -> tuple[StepCost, StepCost, StepCost]:
    """A decode step of one sequence, of LARGE_BATCH, and a chunk: the same for all nodes of a pool."""
    context = min(prompt_tokens + output_tokens // 2, model.context_tokens)
    one, many = decode_cost(model, 1, context), decode_cost(model, LARGE_BATCH, context)
    return one, many, prompt_chunk_cost(model, CHUNK_TOKENS, prompt_tokens)


def chain_of_nodes(
    model: ModelCost,
    links: Links,
    nodes: Sequence[PoolNode],
    layers: Sequence[int],
    work: Workload,
    *,
    head: Located | None = None,
    has_last: bool = True,
) -> ChainTime:
    """The chain that runs `layers[i]` layers on `nodes[i]`, to the model's end if `has_last`; `head`: who asks."""
    tail = len(nodes) - 1
    stages = [
        node_times(model, node, work).stage(count, last=has_last and i == tail)
        for i, (node, count) in enumerate(zip(nodes, layers, strict=True))
    ]
    hops = [hop_time(links, node, nodes[(i + 1) % len(nodes)]) for i, node in enumerate(nodes)]
    return ChainTime(
        stages,
        hops,
        model.hop_bytes(1),
        0.0 if head is None else hop_time(links, head, nodes[0]).way_ms,
        0.0 if head is None else hop_time(links, nodes[-1], head).way_ms,
    )
