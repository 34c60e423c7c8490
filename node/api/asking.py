"""What a client asks for, whatever the dialect it asks in, and how its answer ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from node.wire.frames import Sampling

NO_LIMIT = 10_000_000
"""More tokens than any context has. Clients of other programs write -1 for it."""

MOST_SEQUENCES = 16
"""Answers of one request, all of which run at once."""

Message = Mapping[str, object]
Tool = dict[str, Any]
"""A function's definition as OpenAI writes it, which is what templates expect: type, function: name, parameters."""

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt that the model's template makes."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    """For the template, by the names that it has for them."""
    thinks: bool | None = None
    """Whether it shall think before it answers; None: as it likes."""
    prefill: str = ""
    """What the answer begins with."""
    where: str = "messages"
    """The parameter that a refusal names."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A prompt that is taken as it is: text, or token ids."""

    text: str | tuple[int, ...]
    where: str = "prompt"
    starts: bool = True
    """Text begins with the token that starts a text, where the model has one."""


Prompt = Chat | Plain


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that can be honoured."""

    prompts: tuple[Prompt, ...]
    model: str = ""
    count: int = 1
    """Answers for each prompt."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    parallel_calls: bool = True
    """False: the answer ends with its first call of a tool."""
    id_prefix: str = "chatcmpl-"

    def sampling(self, temperature: float, top_p: float, top_k: int, index: int = 0) -> Sampling:
        """What was asked for, and the given figures where nothing was; each answer has random numbers of its own."""
        return Sampling(
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=top_p if self.top_p is None else self.top_p,
            top_k=top_k if self.top_k is None else self.top_k,
            seed=(self.seed + index * SEED_STEP) % 2**63,
        )


SEED_STEP = 0x9E3779B97F4A7C15 >> 1
"""Between the seeds of answers to one request: far apart, so that neighbouring seeds of two requests share none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One answer has ended."""

    reason: FinishReason
    stop: str | None = None
    """The client's own stop text that ended it."""
