"""Described pools: what is read, and that every error names file, key and reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadPool
from node.plan import read_pool
from node.plan.machines.pool import PRIOR_BANDWIDTH, PRIOR_FAR_MS, PRIOR_NEAR_MS

GOOD = """
[[node]]
name = "studio"
memory_gib = 96
bandwidth_gbps = 800
tflops = 27.5
region = "home"

[[node]]
name = "attic"
memory_gib = 12.5
region = "home"

[[node]]
name = "server"
memory_gib = 80
region = "cloud"

[[link]]
a = "home"
b = "cloud"
rtt_ms = 40
mbps = 200

[[link]]
a = "studio"
b = "attic"
rtt_ms = 0
"""


def test_a_pool_is_read() -> None:
    pool = read_pool(GOOD, "POOL.toml")
    studio, attic, server = pool.nodes
    assert studio.memory_bytes == 96 * 1024**3
    assert studio.bandwidth == 800e9
    assert attic.bandwidth == PRIOR_BANDWIDTH
    assert pool.links.rtt(studio, server) == 40
    assert pool.links.rate_mbps(server, attic) == 200
    assert pool.links.rtt(attic, studio) == 0
    assert PRIOR_NEAR_MS < PRIOR_FAR_MS


NODE = '[[node]]\nname = "a"\nmemory_gib = 8\n'
TWO = NODE + '[[node]]\nname = "b"\nmemory_gib = 8\nregion = "eu"\n'


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("", "node", "there is none"),
        ("[[node]", "TOML", ""),
        ("node = 3", "node", "list of tables"),
        ("[[node]]\nmemory_gib = 8", "node[0].name", "missing"),
        ('[[node]]\nname = "a"', "node[0].memory_gib (a)", "missing"),
        ('[[node]]\nname = "a"\nmemory_gib = 0', "node[0].memory_gib (a)", "zero"),
        ('[[node]]\nname = "a"\nmemory_gib = -3', "node[0].memory_gib (a)", "negative"),
        ('[[node]]\nname = "a"\nmemory_gib = nan', "node[0].memory_gib (a)", "finite"),
        ('[[node]]\nname = "a"\nmemory_gib = inf', "node[0].memory_gib (a)", "finite"),
        ('[[node]]\nname = "a"\nmemory_gib = "80GB"', "node[0].memory_gib (a)", "not a number"),
        ('[[node]]\nname = "a"\nmemory_gib = true', "node[0].memory_gib (a)", "not a number"),
        ('[[node]]\nname = "a"\nmemory_gib = 1e30', "node[0].memory_gib (a)", "beyond any machine"),
        (NODE + "tflops = 0", "node[0].tflops (a)", "zero"),
        (NODE + "bandwidth_gbps = nan", "node[0].bandwidth_gbps (a)", "finite"),
        (NODE + "memory = 8", "node[0].memory", "unknown"),
        (NODE + 'layers = "5:5"', "node[0].layers (a)", "empty"),
        (NODE + 'layers = "all"', "node[0].layers (a)", "range"),
        (NODE + NODE, "node[1].name", "also the name of node[0]"),
        (TWO + '[[node]]\nname = "eu"\nmemory_gib = 8', "node.name", "also a region"),
        (TWO + '[[link]]\na = "a"\nb = "c"\nrtt_ms = 1', "link[0].b", "neither a node nor a region"),
        (TWO + '[[link]]\na = "a"\nrtt_ms = 1', "link[0].b", "missing"),
        (TWO + '[[link]]\na = "a"\nb = "a"\nrtt_ms = 1', "link[0].b (a–a)", "back to itself"),
        (TWO + '[[link]]\na = "a"\nb = "b"', "link[0].rtt_ms (a–b)", "missing"),
        (TWO + '[[link]]\na = "a"\nb = "b"\nrtt_ms = -1', "link[0].rtt_ms (a–b)", "negative"),
        (TWO + '[[link]]\na = "a"\nb = "b"\nmbps = 0', "link[0].mbps (a–b)", "zero"),
        (TWO + 2 * '[[link]]\na = "a"\nb = "b"\nrtt_ms = 1\n', "link[1].a (a–b)", "a link already"),
        (
            TWO + '[[link]]\na = "a"\nb = "b"\nrtt_ms = 1\n[[link]]\na = "b"\nb = "a"\nrtt_ms = 1',
            "link[1].a (b–a)",
            "both",
        ),
        (NODE + "bandwidth_gbps = 1e-300", "node[0].bandwidth_gbps (a)", "too little"),
        (NODE + "tflops = 1e-14", "node[0].tflops (a)", "too little"),
        (TWO + '[[link]]\na = "a"\nb = "b"\nmbps = 1e-300', "link[0].mbps (a–b)", "too little"),
        ("[[nodes]]", "nodes", "unknown"),
    ],
)
def test_what_cannot_be_names_file_key_and_reason(text: str, key: str, reason: str) -> None:
    with pytest.raises(BadPool) as caught:
        read_pool(text, "POOL.toml")
    assert caught.value.key == key
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f'POOL.toml: "{key}"')


@given(st.text(alphabet='[]node=link"ab01.\n eu', max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_pool(text, "POOL.toml")
    except BadPool:
        return
