"""Phase 2 in pools whose machines and links differ by orders of magnitude, against trying every chain."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from node.plan.machines.pool import Links, PoolNode
from node.plan.routing.hosts import Host, Request
from node.plan.routing.router import Router, route
from tests.fakes.every_chain import cheapest

WORLDS = 150


def between(chance: random.Random, least: float, most: float) -> float:
    """Log-uniform."""
    return math.exp(chance.uniform(math.log(least), math.log(most)))


def world(seed: int) -> tuple[int, list[Host], Links, Request]:
    """Two to five machines of 1e10–2e12 bytes per second, links of 0.2–200 ms and 1–10,000 Mbit/s between all; ranges
    that overlap or not, some loaded; a head among them, beside them, or none."""
    chance = random.Random(seed)
    layers, count = chance.randint(3, 6), chance.randint(2, 5)
    layer_bytes = between(chance, 1e7, 1e9)
    hosts = []
    for i in range(count):
        bandwidth = between(chance, 1e10, 2e12)
        flops = bandwidth * between(chance, 3, 300)
        decode_ms = layer_bytes / bandwidth / 0.7 * 1000
        start = chance.choice([0, chance.randrange(layers)])
        end = chance.choice([layers, chance.randint(start + 1, layers)])
        hosts.append(
            Host(
                f"n{i}",
                start,
                end,
                decode_ms,
                load=chance.choice([0, 0, 0, 1, 2.5]),
                overhead_ms=between(chance, 0.05, 3),
                head_ms=between(chance, 0.1, 20),
                chunk_layer_ms=max(decode_ms, layer_bytes * 128 / flops / 0.7 * 1000),
            )
        )
    pairs = [(f"n{i}", f"n{j}") for i in range(count + 1) for j in range(i)]
    links = Links({p: between(chance, 0.2, 200) for p in pairs}, {p: between(chance, 1, 10_000) for p in pairs})
    head = chance.choice([None, PoolNode(f"n{count}", 0), PoolNode(f"n{chance.randrange(count)}", 0)])
    request = Request(
        chance.choice([2048.0, 8192.0, 16384.0]),
        head=head,
        prompt_tokens=round(between(chance, 1, 6000)),
        output_tokens=round(between(chance, 1, 1000)),
    )
    return layers, hosts, links, request


def test_chains_are_the_best_of_all_in_unlike_pools() -> None:
    ratios = []
    for seed in range(WORLDS):
        layers, hosts, links, request = world(seed)
        best = cheapest(layers, hosts, links, request)
        if best < math.inf:
            found = Router(layers, hosts, links).route(request)
            assert (found.stages[0].start, found.stages[-1].end) == (0, layers)
            assert all(a.end == b.start for a, b in pairwise(found.stages))
            ratios.append(found.token_ms / best)
    assert len(ratios) > WORLDS / 2
    assert max(ratios) <= 1.1
    assert sum(ratio <= 1.01 for ratio in ratios) >= 0.99 * len(ratios)


def test_the_way_from_the_tail_to_the_first_stage_counts_in_every_token() -> None:
    links = Links({("eu", "us"): 100.0}, near_ms=1.0)
    held = [Host("a", 0, 4, 1.0, "us"), Host("b_us", 4, 8, 2.0, "us"), Host("b_eu", 4, 8, 1.0, "eu")]
    found = route(8, held, links, Request(head=PoolNode("head", 0, region="eu"), output_tokens=100))
    assert found.nodes == ("a", "b_us")
    assert found.step_ms == pytest.approx(4 + 8 + 0.5 + 0.5)


def test_a_long_prompt_keeps_off_a_thin_link() -> None:
    fast, thin, thick = Host("a", 0, 4, 5.0), Host("thin", 4, 8, 4.5), Host("thick", 4, 8, 4.75)
    links = Links(
        {("a", "thin"): 1.0, ("a", "thick"): 1.0, ("thin", "thick"): 50.0},
        {("a", "thin"): 100.0, ("a", "thick"): 1000.0},
    )

    def chosen(prompt_tokens: int) -> str:
        request = Request(8192, prompt_tokens=prompt_tokens, output_tokens=64)
        return route(8, [fast, thin, thick], links, request).nodes[-1]

    assert chosen(1) == "thin"
    assert chosen(2000) == "thick"


def test_a_long_prompt_is_worth_a_stage_more_and_a_short_one_is_not() -> None:
    """Stages work at chunks side by side."""
    hosts = [Host("a", 0, 8, 1.0, chunk_layer_ms=20.0), Host("b", 0, 8, 1.05, chunk_layer_ms=20.0)]
    links = Links({("a", "b"): 4.0}, {("a", "b"): 10_000.0})

    def chosen(prompt_tokens: int) -> int:
        return len(route(8, hosts, links, Request(8192, prompt_tokens=prompt_tokens, output_tokens=64)).stages)

    assert chosen(100) == 1
    assert chosen(8000) == 2


def test_a_routes_times_hold_no_price_for_parts() -> None:
    hosts = [Host("a", 0, 6, 100.0), Host("b", 3, 6, 10.0)]
    plain, priced = (route(6, hosts, Links(near_ms=1.0), Request(part_worth=worth)) for worth in (0.0, 0.05))
    assert plain == priced
    assert priced.step_ms == pytest.approx(3 * 100 + 3 * 10 + 0.5 + 0.5)
