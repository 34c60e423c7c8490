"""Which reader an answer needs: by the model's family, by whether it may call tools, by where its prompt ended."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from node.api.speech.channels import channels
from node.api.speech.json_calls import deepseek_call, hermes_call, kimi_call, llama_calls, mistral_calls
from node.api.speech.reading import Reading, Script
from node.api.speech.tagged_calls import DSML, GLM, MINIMAX, QWEN_XML, Schemas, Tags, tagged_call
from node.api.speech.tidy import Tidy
from node.models.speech import Family, Speech

_OPENINGS: Mapping[Family, tuple[str, ...]] = {
    "deepseek": ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    "deepseek_dsml": ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"),
    "kimi": ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    "minimax": ("<minimax:tool_call>",),
    "mistral": ("[TOOL_CALLS]",),
    "llama3": (),
}
"""Marks after which calls come, or which only stand around them; all others: `<tool_call>`."""

_AROUND = frozenset(
    {
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    }
)
"""Those of them that are neither text nor calls."""

_SECTION = {
    "deepseek_dsml": (DSML, ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")),
    "minimax": (MINIMAX, ("</minimax:tool_call>",)),
    "qwen_xml": (QWEN_XML, ("</tool_call>",)),
    "glm": (GLM, ()),
}


def reader(speech: Speech, prompt_end: str, tools: Schemas | None) -> Reading:
    """For one answer.

    Args:
        speech: how the model writes.
        prompt_end: the end of the prompt's text, in which thinking may have begun.
        tools: what it may call; None: nothing is read as a call.
    """
    return Reading(partial(_answer, speech=speech, prompt_end=prompt_end, tools=tools))


def plain_reader() -> Reading:
    """For text that is not read at all."""
    return Reading(_nothing)


def _nothing(reading: Reading) -> Script[None]:
    yield from ()


def _answer(reading: Reading, *, speech: Speech, prompt_end: str, tools: Schemas | None) -> Script[None]:
    if speech.family == "harmony":
        yield from channels(reading, calls=tools is not None)
        return
    thought = False
    if speech.thoughts is not None:
        thought = yield from _thoughts(reading, speech.thoughts, prompt_end)
    if tools is None:
        if thought:
            yield from reading.spaces()
        return
    if speech.family in ("llama3", "generic"):
        yield from llama_calls(reading, tools)
    yield from _text_and_calls(reading, speech.family, tools, fresh=thought)


def _thoughts(reading: Reading, marks: tuple[str, str], prompt_end: str) -> Script[bool]:
    """What is thought at the start of an answer; whether anything is."""
    opens, closes = marks
    if not prompt_end.rstrip().endswith(opens):
        blank = yield from reading.spaces()
        if not (yield from reading.begins(opens)):
            reading.say(blank)
            return False
    yield from reading.pass_until((closes,), Tidy(reading.think, fresh=True))
    return True


def _text_and_calls(reading: Reading, family: Family, schemas: Schemas, *, fresh: bool) -> Script[None]:
    opens = _OPENINGS.get(family, ("<tool_call>",))
    if not opens:
        return
    while True:
        words, before = Tidy(reading.say, fresh=fresh), reading.calls
        opened = yield from reading.pass_until(opens, words)
        if not opened:
            if words.blank:
                reading.say(words.blank)
            return
        reading.blank += words.blank
        yield from _calls(reading, family, schemas, opened)
        fresh = reading.calls > before or opened in _AROUND


def _calls(reading: Reading, family: Family, schemas: Schemas, opened: str) -> Script[None]:
    match family:
        case "mistral":
            yield from mistral_calls(reading, opened)
        case "deepseek":
            if opened == "<｜tool▁call▁begin｜>":
                yield from deepseek_call(reading, opened)
        case "kimi":
            if opened == "<|tool_call_begin|>":
                yield from kimi_call(reading, opened)
        case "deepseek_dsml" | "minimax" | "qwen_xml" | "glm":
            tags, ends = _SECTION[family]
            yield from _section(reading, tags, ends, schemas, opened)
        case _:
            yield from hermes_call(reading, opened)


def _section(reading: Reading, tags: Tags, ends: tuple[str, ...], schemas: Schemas, opened: str) -> Script[None]:
    """The calls after one opening mark."""
    before = reading.calls
    while (yield from tagged_call(reading, tags, schemas, opened)):
        if not ends:
            return
    if reading.calls == before and tags is QWEN_XML:  # it may write as its elders did
        yield from hermes_call(reading, opened)
        return
    for end in ends:
        if (yield from reading.begins(end)):
            return
