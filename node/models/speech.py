"""How a model writes its thoughts and its calls of tools, told from its chat template and its own tokens.

Families differ in their marks alone; who reads them is told the family's name. Knows no HTTP and parses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Family = Literal[
    "harmony",
    "deepseek_dsml",
    "deepseek",
    "kimi",
    "minimax",
    "glm",
    "qwen_xml",
    "mistral",
    "hermes",
    "llama3",
    "generic",
]

_SIGNS: tuple[tuple[Family, str], ...] = (
    ("harmony", "<|channel|>"),
    ("deepseek_dsml", "｜DSML｜"),
    ("deepseek", "<｜tool▁calls▁begin｜>"),
    ("kimi", "<|tool_calls_section_begin|>"),
    ("minimax", "<minimax:tool_call>"),
    ("glm", "<arg_key>"),
    ("qwen_xml", "<function="),
    ("mistral", "[TOOL_CALLS]"),
    ("hermes", "<tool_call>"),
    ("llama3", '"parameters":'),
    ("llama3", "<|python_tag|>"),
)
"""What only the templates of one family have, looked for in this order: some have the marks of others too."""

_THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
)

SWITCHES = ("enable_thinking", "thinking", "reasoning_effort")
"""Names by which templates let thinking be turned on, off, or to some effort."""

MARKS = (
    *(mark for pair in _THOUGHTS for mark in pair),
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    *("<|tool_call_argument_begin|>", "<minimax:tool_call>", "</minimax:tool_call>", "｜DSML｜"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    *("<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"),
)
"""Special tokens that say how an answer is to be read: whoever reads it must see them."""


@dataclass(frozen=True, slots=True)
class Speech:
    """One model's way."""

    family: Family
    thoughts: tuple[str, str] | None
    """The marks around its thoughts; None: it has none, or `harmony`'s channels."""
    takes_tools: bool
    """Its template writes definitions of tools."""
    switches: frozenset[str]
    """Those of `SWITCHES` that its template knows."""

    @property
    def thinks(self) -> bool:
        return self.thoughts is not None or self.family == "harmony"


def speech(template: str | None, has_token: Callable[[str], bool]) -> Speech:
    """What this template, and a vocabulary that `has_token` knows, say of the model.

    Its own tokens count for thoughts, since templates of some models that think never write the marks.
    """
    text = template or ""
    takes_tools = "tools" in text
    family: Family = next((name for name, sign in _SIGNS if takes_tools and sign in text), "generic")
    if "<|channel|>" in text:
        family = "harmony"
    thoughts = None
    if family != "harmony":
        thoughts = next(
            (pair for pair in _THOUGHTS if pair[1] in text or (has_token(pair[0]) and has_token(pair[1]))), None
        )
    return Speech(family, thoughts, takes_tools, frozenset(name for name in SWITCHES if name in text))
