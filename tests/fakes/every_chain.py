"""Phase 2's answer by trying everything, with a cost of its own: knows hosts, links, requests, and no formula."""

from __future__ import annotations

import math
from collections.abc import Sequence

from node.plan.machines.pool import Links, Located
from node.plan.routing.hosts import Host, Request

CHUNK = 128
Chain = Sequence[tuple[Host, int]]
"""Hosts in order, with the layers that each runs."""


def cheapest(layers: int, hosts: Sequence[Host], links: Links, request: Request) -> float:
    """The least time per output token of any chain; infinite where there is none.

    A node comes twice only for prompts of one chunk: with more, its stages share it, which `token_ms` does not play.
    """
    best = math.inf

    def go_on(layer: int, chain: list[tuple[Host, int]]) -> None:
        nonlocal best
        if layer == layers:
            best = min(best, token_ms(chain, links, request))
            return
        for host in hosts:
            if not host.start <= layer < host.end:
                continue
            if chain and chain[-1][0] is host:
                chain[-1] = host, chain[-1][1] + 1
                go_on(layer + 1, chain)
                chain[-1] = host, chain[-1][1] - 1
            elif request.prompt_tokens <= CHUNK or all(known.node_id != host.node_id for known, _ in chain):
                chain.append((host, 1))
                go_on(layer + 1, chain)
                chain.pop()

    go_on(0, [])
    return best


def token_ms(chain: Chain, links: Links, request: Request) -> float:
    """A prompt's chunks played one by one, then steps that go around and around."""
    prompt = _prompt_ms(chain, links, request)
    return (prompt + (request.output_tokens - 1) * step_ms(chain, links, request)) / request.output_tokens


def step_ms(chain: Chain, links: Links, request: Request) -> float:
    """Once around."""
    total = chain[-1][0].head_ms
    for i, (host, layers) in enumerate(chain):
        total += host.layer_ms * layers * host.slower + host.overhead_ms
        following = chain[(i + 1) % len(chain)][0]
        total += _way_ms(links, host, following)
        if i < len(chain) - 1 and following.node_id != host.node_id:
            total += request.hop_bytes / _bytes_per_ms(links, host, following)
    return total


def _prompt_ms(chain: Chain, links: Links, request: Request) -> float:
    sizes = [min(CHUNK, request.prompt_tokens - start) for start in range(0, request.prompt_tokens, CHUNK)]
    free_at = [0.0] * (2 * len(chain))
    now = 0.0
    for number, size in enumerate(sizes):
        now = _way_ms(links, request.head, chain[0][0]) if request.head is not None else 0.0
        for i, (host, layers) in enumerate(chain):
            took = max(host.layer_ms, max(host.layer_ms, host.chunk_layer_ms) * size / CHUNK) * layers
            took = took * host.slower + host.overhead_ms
            is_tail = i == len(chain) - 1
            if is_tail and number == len(sizes) - 1:
                took += host.head_ms
            free_at[2 * i] = now = max(now, free_at[2 * i]) + took
            if not is_tail and (following := chain[i + 1][0]).node_id != host.node_id:
                sent = size * request.hop_bytes / _bytes_per_ms(links, host, following)
                free_at[2 * i + 1] = now = max(now, free_at[2 * i + 1]) + sent
                now += _way_ms(links, host, following)
    return now + (_way_ms(links, chain[-1][0], request.head) if request.head is not None else 0.0)


def _way_ms(links: Links, a: Located, b: Located) -> float:
    return 0.0 if a.node_id == b.node_id else links.rtt(a, b) * links.trips


def _bytes_per_ms(links: Links, a: Located, b: Located) -> float:
    return links.rate_mbps(a, b) * 1000 / 8
