"""What each family's answers say, however they are cut into pieces."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.speech.reader import reader
from node.api.speech.said import Arguments, CallBegun, CallEnded, Said, Text, Thought
from node.models.speech import Family, Speech

THINK = ("<think>", "</think>")
TOOLS = {"f": {"properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}, "g": {}}

Told = list[tuple[str, object]]


def heard(speech: Speech, pieces: list[str], *, tools: bool = True, end: str = "") -> list[Said]:
    reading = reader(speech, end, TOOLS if tools else None)
    said = [each for piece in pieces for each in reading.push(piece)]
    return said + reading.finish()


def told(said: list[Said]) -> Told:
    """Kinds and texts, parts that follow one another joined, arguments parsed."""
    found: Told = []
    arguments: dict[int, str] = {}
    for each in said:
        match each:
            case Text(text=text) | Thought(text=text):
                kind = "text" if isinstance(each, Text) else "thought"
                if found and found[-1][0] == kind:
                    found[-1] = (kind, f"{found[-1][1]}{text}")
                else:
                    found.append((kind, text))
            case CallBegun(index=index, name=name):
                arguments[index] = ""
                found.append((name, index))
            case Arguments(index=index, text=text):
                arguments[index] += text
            case CallEnded(index=index):
                assert found[-1][1] == index
                found[-1] = (found[-1][0], json.loads(arguments[index]))
    return found


DS_BEGIN, DS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DS_CALL, DS_CALL_END, DS_SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"

NO_CALL = '{"name": "z", "parameters": {}}'

ANSWERS: list[tuple[str, Family, str, Told]] = [
    (
        "hermes: text, two calls, one of them with its keys the other way",
        "hermes",
        'Ok.\n\n<tool_call>\n{"name": "f", "arguments": {"a": "x}\\"<y", "n": [1, {}]}}\n</tool_call>\n<tool_call>\n'
        '{"arguments": {"q": 1}, "name": "g"}\n</tool_call>',
        [("text", "Ok."), ("f", {"a": 'x}"<y', "n": [1, {}]}), ("g", {"q": 1})],
    ),
    (
        "hermes: thoughts before, marks that are none, text behind",
        "hermes",
        "<think>\nhm <tool_call>\n</think>\n\nif a <b: <tool_call>nope</tool_call> done ",
        [("thought", "hm <tool_call>"), ("text", "if a <b: <tool_call>nope</tool_call> done ")],
    ),
    (
        "hermes: arguments as text",
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [("f", {"a": 1})],
    ),
    (
        "qwen's coder: tags, values of several lines, types by the schema",
        "qwen_xml",
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n\n2\n</parameter>\n<parameter=n>\n7\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        [("f", {"a": "1\n\n2", "n": 7}), ("g", {})],
    ),
    (
        "qwen's coder, speaking as its elders",
        "qwen_xml",
        '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>',
        [("f", {"a": "b"})],
    ),
    (
        "llama: two objects",
        "llama3",
        '{"name": "f", "parameters": {"a": "b"}}; {"name": "g", "parameters": {}}',
        [("f", {"a": "b"}), ("g", {})],
    ),
    (
        "llama: with its tag and a type",
        "llama3",
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": "b"}}',
        [("f", {"a": "b"})],
    ),
    (
        "llama: JSON that names no tool",
        "llama3",
        '{"name": "z", "parameters": {}}',
        [("text", '{"name": "z", "parameters": {}}')],
    ),
    ("llama: JSON that is none", "llama3", ' {"some": 1}  x', [("text", ' {"some": 1}  x')]),
    (
        "mistral: a list",
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": "]"}, "id": "abc"}, {"name": "g", "arguments": {}}]',
        [("f", {"a": "]"}), ("g", {})],
    ),
    (
        "mistral: names and arguments",
        "mistral",
        'Hi[TOOL_CALLS]f[CALL_ID]x1[ARGS]{"a": 1}[TOOL_CALLS]g{"b": 2}',
        [("text", "Hi"), ("f", {"a": 1}), ("g", {"b": 2})],
    ),
    (
        "deepseek: fenced",
        "deepseek",
        f'x{DS_BEGIN}{DS_CALL}function{DS_SEP}f\n```json\n{{"a": 1}}\n```{DS_CALL_END}\n{DS_CALL}function{DS_SEP}g\n'
        f"```json\n{{}}\n```{DS_CALL_END}{DS_END}",
        [("text", "x"), ("f", {"a": 1}), ("g", {})],
    ),
    (
        "deepseek: bare",
        "deepseek",
        f'</think>{DS_BEGIN}{DS_CALL}f{DS_SEP}{{"a": 1}}{DS_CALL_END}{DS_CALL}g{DS_SEP}{{}}{DS_CALL_END}{DS_END}',
        [("text", "</think>"), ("f", {"a": 1}), ("g", {})],
    ),
    (
        "deepseek: tags that tell what is text",
        "deepseek_dsml",
        'I\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">5'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="n" string="false">5</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        [("text", "I"), ("f", {"a": "5", "n": 5})],
    ),
    (
        "glm",
        "glm",
        "<think>t</think>\nok\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>5</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>5</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call><tool_call>g</tool_call>",
        [("thought", "t"), ("text", "ok"), ("f", {"a": "5", "n": 5}), ("g", {}), ("g", {})],
    ),
    (
        "minimax",
        "minimax",
        '<think>t\n</think>\n\nok\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">5 <b></parameter>\n'
        '<parameter name="n">5</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>',
        [("thought", "t"), ("text", "ok"), ("f", {"a": "5 <b>", "n": 5}), ("g", {})],
    ),
    (
        "kimi",
        "kimi",
        "ok<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        [("text", "ok"), ("f", {"a": 1}), ("g", {})],
    ),
    (
        "gpt-oss: a thought and a call",
        "harmony",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        '<|constrain|>json<|message|>{"a":1}',
        [("thought", "hm"), ("f", {"a": 1})],
    ),
    (
        "gpt-oss: a preamble, the recipient first, an answer",
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.g<|channel|>commentary"
        "<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>Hello",
        [("text", "I look."), ("g", {}), ("text", "Hello")],
    ),
    ("gpt-oss without any marks", "harmony", "Hello", [("text", "Hello")]),
    (
        "a model that knows no tools, as it was told in words",
        "generic",
        'Yes. <tool_call>{"name": "f", "arguments": {"a": "b"}}</tool_call>',
        [("text", "Yes."), ("f", {"a": "b"})],
    ),
    ("a model that knows no tools, with the bare object", "generic", '{"name": "f", "arguments": {}}', [("f", {})]),
]


def speech_of(family: Family) -> Speech:
    return Speech(family, None if family == "harmony" else THINK, True, frozenset())


@pytest.mark.parametrize(("family", "answer", "expected"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_an_answer_says_the_same_however_it_is_cut(family: Family, answer: str, expected: Told) -> None:
    speech = speech_of(family)
    assert told(heard(speech, [answer])) == expected
    assert told(heard(speech, list(answer))) == expected
    for seed in range(20):
        dice = random.Random(seed)
        cuts = sorted(dice.sample(range(len(answer)), min(len(answer) - 1, 8)))
        pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
        assert told(heard(speech, pieces)) == expected


@pytest.mark.parametrize("family", ["hermes", "glm", "generic"])
def test_an_answer_that_is_cut_short_loses_nothing_that_was_text(family: Family) -> None:
    speech = Speech(family, None, True, frozenset())
    for text in ("Hello <tool_", "Hello <", "Hello  ", "<tool_call", "<", '{"na', "  "):
        assert told(heard(speech, list(text))) == [("text", text)]


def test_a_prompt_that_ends_in_the_thought_begins_the_answer_there() -> None:
    speech = speech_of("hermes")
    for tools in (True, False):
        said = told(heard(speech, list("hm\n</think>\n\nOk "), tools=tools, end="<|im_start|>assistant\n<think>\n"))
        assert said == [("thought", "hm"), ("text", "Ok ")]
        closed = "<think>\n\n</think>\n\n"
        assert told(heard(speech, list("Ok <think>"), tools=tools, end=closed)) == [("text", "Ok <think>")]
    assert told(heard(speech, ["hm"], end="<think>")) == [("thought", "hm")]


def test_without_tools_nothing_is_a_call() -> None:
    for family, answer in (("hermes", '<tool_call>{"name": "f"}</tool_call>'), ("llama3", '{"name": "f"}')):
        speech = Speech(family, None, True, frozenset())  # type: ignore[arg-type]
        assert told(heard(speech, list(answer), tools=False)) == [("text", answer)]


def test_a_call_is_told_as_soon_as_its_name_is_there_and_its_arguments_as_they_come() -> None:
    reading = reader(speech_of("hermes"), "", TOOLS)
    first = reading.push('<tool_call>\n{"name": "f", "arguments": {"a": "x')
    assert [type(each) for each in first] == [CallBegun, Arguments]
    assert reading.push(" y") == [Arguments(0, " y")]


families = st.sampled_from([family for _, family, _, _ in ANSWERS])
marks = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "{",
            "}",
            '"name": "f"',
            ",",
            '"arguments": ',
            "[ARGS]",
            "f",
            '"',
        ),
        *("<think>", "</think>", "<function=f>", "<parameter=a>", "</parameter>", "<arg_key>", "</arg_key>", "\\"),
        *("<arg_value>", "</arg_value>", "<minimax:tool_call>", '<invoke name="f">', DS_CALL, DS_SEP, DS_BEGIN),
        *("<|channel|>", "<|message|>", "final", "<|end|>", "to=functions.f", "<|python_tag|>", ";", " ", "\n", "x"),
    ]
)


@given(families, st.lists(marks, max_size=30), st.booleans())
def test_no_answer_breaks_a_reader(family: Family, pieces: list[str], tools: bool) -> None:
    begun: set[int] = set()
    for said in heard(speech_of(family), pieces, tools=tools):
        match said:
            case CallBegun(index=index):
                assert index == len(begun)
                begun.add(index)
            case Arguments(index=index) | CallEnded(index=index):
                assert index in begun
    assert tools or not begun


@pytest.mark.parametrize(
    "opening",
    [
        '<tool_call>{"name": "f", "arguments": {"a": "',
        "<tool_call>{",
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>",
        "<think>",
        "[TOOL_CALLS][",
        "",
    ],
)
def test_a_long_answer_costs_as_much_per_piece_as_a_short_one(opening: str) -> None:
    """Ten thousand pieces of three characters: who looks back at all of them takes many times as long."""
    for family in ("hermes", "glm", "mistral"):
        reading = reader(speech_of(family), "", TOOLS)  # type: ignore[arg-type]
        reading.push(opening)
        begun_s = time.thread_time()
        for _ in range(10_000):
            reading.push("ab ")
        reading.finish()
        assert time.thread_time() - begun_s < 2
