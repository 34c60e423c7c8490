"""A template from strangers comes to an end, in time and in size, whatever it does, and an honest one never notices."""

from __future__ import annotations

import time

import pytest
import trio

from node.errors import BadRequest, DamagedModel
from node.models.template import compile_template

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rendered(template: str, *contents: str) -> str:
    return compile_template(template, "here")([{"role": "user", "content": text} for text in contents], {})


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{% macro again(n) %}{% for i in range(99999) %}{{ again(n) }}{% endfor %}{% endmacro %}{{ again(1) }}",
        "{% for i in range(9999) %}{% set x = range(99999) | map('string') | map('upper') | list %}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | select('odd') | list | length }}{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_ended_within_two_seconds_of_work(template: str) -> None:
    began_s = time.thread_time()
    with pytest.raises(BadRequest, match=r"does not come to an end|recursion|does not take them"):
        rendered(template, "hello")
    assert time.thread_time() - began_s < 2


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * (10 ** 12) }}",
        "{{ (10 ** 9) * 'x' }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x' | center(999999999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    ],
)
def test_no_single_step_of_a_template_grows_without_bound(template: str) -> None:
    began_s = time.thread_time()
    with pytest.raises((BadRequest, DamagedModel)):
        rendered(template, "hello")
    assert time.thread_time() - began_s < 2


async def _others_are_served_meanwhile() -> None:
    ended: list[str] = []

    async def endless() -> None:
        with pytest.raises(BadRequest):
            await trio.to_thread.run_sync(rendered, ENDLESS, "hello")
        ended.append("endless")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(endless)
        assert "hello" in await trio.to_thread.run_sync(rendered, CHATML, "hello")
        ended.append("honest")
    assert ended == ["honest", "endless"]


def test_others_are_not_blocked_by_a_template_without_an_end() -> None:
    trio.run(_others_are_served_meanwhile)


def test_a_megabyte_of_short_messages_is_rendered() -> None:
    assert rendered(CHATML, *["x y z"] * 20_000).count("<|im_start|>") == 20_001


def test_what_is_traced_is_the_rendering_alone() -> None:
    import sys

    before = sys.gettrace()
    rendered(CHATML, "hello")
    assert sys.gettrace() is before
