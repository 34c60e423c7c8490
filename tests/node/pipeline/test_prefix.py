"""The next turn of a chat computes what is new in it, and its text is what it would be without that."""

from __future__ import annotations

from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from node.engine.base import BLOCK_TOKENS
from node.pipeline.generation import Generation
from node.pipeline.prefix import LEAST_LEFT_TOKENS, KnownPrefixes, bound_to, names_of
from node.wire.frames import Sampling
from tests.fakes.engine import expected_tokens
from tests.node.pipeline.test_dispatch import LAYERS, PLAN, Lab, Node, in_a_lab

ROOM: dict[str, Any] = {"kv_tokens": 2000, "kv_tokens_total": 2000, "drift_class": "toy"}


async def turn(head: Node, prompt: list[int], answer: int, name: str = "a turn") -> list[int]:
    """One turn; the whole of what was said by its end."""
    generation = Generation(tuple(prompt), answer, (), Sampling(), PLAN.weights)
    async with head.dispatcher.generate(generation, name, head.chains.append) as tokens:
        got = [step.token async for step in tokens]
    assert got == expected_tokens(prompt, LAYERS, answer)
    await trio.sleep(0.5)
    return prompt + got


def computed(node: Node) -> int:
    """Rows so far."""
    return sum(slot.count for stage in node.engine.stages for slot in stage.steps)


@in_a_lab
async def test_each_turn_of_a_chat_computes_what_is_new_in_it(lab: Lab) -> None:
    head = await lab.join("h")
    nodes = [await lab.join("a", (0, 3), **ROOM), await lab.join("b", (3, 6), **ROOM)]
    said = [number % 250 for number in range(300)]
    for number in range(4):
        before = [computed(node) for node in nodes]
        told = len(said)
        said = await turn(head, [*said, *([number] * 30)], 40, f"{number}")
        new = [computed(node) - rows for node, rows in zip(nodes, before, strict=True)]
        most = 30 + 40 + 2 * BLOCK_TOKENS if number else told + 30 + 40
        assert max(new) <= most


@in_a_lab
async def test_a_turn_begins_with_what_all_stages_of_the_chain_hold(lab: Lab) -> None:
    head = await lab.join("h")
    nodes = [await lab.join("a", (0, 3), **ROOM), await lab.join("b", (3, 6), **ROOM)]
    said = await turn(head, [number % 250 for number in range(300)], 40)
    (stage,) = nodes[1].engine.stages
    blocks = list(stage.kept)
    stage.kept = {key: stage.kept[key] for key in blocks[:2]}
    before = [computed(node) for node in nodes]
    await turn(head, said, 20)
    assert {computed(node) - rows for node, rows in zip(nodes, before, strict=True)} == {340 - 2 * BLOCK_TOKENS + 19}
    stage.kept.clear()
    before = [computed(node) for node in nodes]
    await turn(head, said, 20)
    assert {computed(node) - rows for node, rows in zip(nodes, before, strict=True)} == {340 + 19}


@in_a_lab
async def test_what_is_kept_makes_room_for_whoever_needs_it(lab: Lab) -> None:
    head = await lab.join("h")
    node = await lab.join("a", (0, 6), **ROOM)
    (stage,) = node.engine.stages
    for number in range(12):
        await turn(head, [number] * 500, 20, f"{number}")
        taken = sum(each.room * (each.end - each.start) for each in stage.sequences.values())
        assert stage.kept_layer_tokens + taken <= 2000 * LAYERS
    assert stage.kept_layer_tokens > 0
    started_s = trio.current_time()
    await turn(head, [3] * 1990, 10, "all the room")
    assert trio.current_time() - started_s < 5
    assert head.avoided == []


@in_a_lab
async def test_what_one_head_says_of_its_tokens_is_believed_of_no_other_heads(lab: Lab) -> None:
    one, other = await lab.join("h"), await lab.join("i")
    node = await lab.join("a", (0, 6), **ROOM)
    said = await turn(one, [7] * 300, 20)
    other.pipeline.head._prefixes = one.pipeline.head._prefixes  # as if it knew the names
    before = computed(node)
    await turn(other, said, 20)
    assert computed(node) - before == 320 + 19


@in_a_lab
async def test_nothing_is_taken_over_between_nodes_that_compute_otherwise_or_do_not_say_how(lab: Lab) -> None:
    head = await lab.join("h")
    node = await lab.join("a", (0, 6), **(ROOM | {"drift_class": ""}))
    said = await turn(head, [7] * 300, 20)
    before = computed(node)
    await turn(head, said, 20)
    assert computed(node) - before == 320 + 19


def test_the_name_of_a_block_follows_from_all_that_its_keys_and_values_do() -> None:
    tokens = list(range(200))
    names = names_of(tokens, "weights", ["one", "two"])
    assert len(names) == 3
    assert names == names_of(tokens[:192], "weights", ["two", "one", "one"])
    assert names[:1] == names_of([*range(127), 9, *range(128, 200)], "weights", ["one", "two"])[:1]
    for others in (
        names_of(tokens, "other weights", ["one", "two"]),
        names_of(tokens, "weights", ["one"]),
        names_of([1, *tokens[1:]], "weights", ["one", "two"]),
        bound_to("ada", names),
    ):
        assert not {*names} & {*others}
    assert bound_to("ada", names) != bound_to("bob", names)


@given(st.lists(st.integers(0, 3), max_size=400), st.lists(st.integers(0, 3), max_size=400))
def test_two_texts_share_the_names_of_the_whole_blocks_that_they_both_begin_with(a: list[int], b: list[int]) -> None:
    common = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    shared = sum(x == y for x, y in zip(names_of(a, "w", ["c"]), names_of(b, "w", ["c"]), strict=False))
    assert shared == common // BLOCK_TOKENS


def test_some_of_a_prompt_is_computed_in_any_case_and_nothing_is_asked_for_that_nobody_was_to_keep() -> None:
    known = KnownPrefixes()
    names = names_of(range(256), "w", ["c"])
    assert known.worth_asking_for(names, 256) == ()
    known.note(names)
    assert known.worth_asking_for(names, 256) == names[:3]
    assert known.worth_asking_for(names, 256 + LEAST_LEFT_TOKENS) == names
    assert known.worth_asking_for(names_of([9] * 256, "w", ["c"]), 256) == ()
