"""A chat completion's body, checked at the door, and how it is answered."""

from __future__ import annotations

from msgspec import Raw, Struct

from node.api.asking import MOST_SEQUENCES, NO_LIMIT, Ask, Chat, Message
from node.api.dialects.base import Asked
from node.api.dialects.fields import Fields, decoded, seed_of, stops_of, whole_within, within
from node.api.dialects.openai_chat_form import ChatForm
from node.api.dialects.openai_errors import openai_error
from node.api.dialects.openai_messages import messages_of, refuse_too_many
from node.api.dialects.openai_names import ALSO_KNOWN, CHAT, HARMLESS
from node.api.dialects.thinking import by_effort, by_switch, switched, template_options
from node.api.dialects.tools import chosen, tools_of
from node.errors import BadRequest


class StreamOptions(Struct, frozen=True):
    """Of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(Struct, frozen=True):
    """The honoured fields. Messages and tools are taken apart one by one, after they have been counted."""

    messages: Raw = Raw(b"null")
    tools: Raw = Raw(b"null")
    tool_choice: Raw = Raw(b"null")
    parallel_tool_calls: bool | None = None
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    reasoning_effort: str | None = None
    reasoning: Raw = Raw(b"null")
    thinking: Raw = Raw(b"null")
    enable_thinking: bool | None = None
    think: Raw = Raw(b"null")
    chat_template_kwargs: Raw = Raw(b"null")
    continue_final_message: bool | None = None


FIELDS = Fields(_Body, harmless=HARMLESS, neutral=CHAT, also_known=ALSO_KNOWN)


class OpenAIChat:
    """`POST /v1/chat/completions`."""

    error = staticmethod(openai_error)

    def parse(self, body: bytes) -> Asked:
        """Check a body. Takes up to some tens of milliseconds for a large one.

        Raises:
            BadRequest: with the parameter's name and what is wrong with it.
        """
        refuse_too_many(body)
        FIELDS.check(body)
        asked: _Body = decoded(body, _Body)
        chat = chat_of(asked)
        ask = Ask(
            prompts=(chat,),
            model=asked.model or "",
            count=whole_within("n", asked.n, 1, MOST_SEQUENCES) or 1,
            max_tokens=max_tokens_of(asked),
            stop=stops_of(asked.stop),
            temperature=within("temperature", asked.temperature, 0.0, 2.0),
            top_p=within("top_p", asked.top_p, 0.0, 1.0, above=True),
            top_k=0 if asked.top_k == -1 else whole_within("top_k", asked.top_k, 0, 1_000_000),
            seed=seed_of(asked.seed),
            parallel_calls=asked.parallel_tool_calls is not False,
        )
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return Asked(ask, ChatForm(usage), bool(asked.stream))


def chat_of(asked: _Body) -> Chat:
    """Messages, tools and what is said to the template. Raises BadRequest."""
    messages = messages_of(asked.messages)
    options, thinks = _options(asked)
    prefill = ""
    if asked.continue_final_message:
        messages, prefill = prefilled(messages)
    return Chat(messages, chosen(asked.tool_choice, tools_of(asked.tools)), options, thinks, prefill)


def prefilled(messages: list[Message]) -> tuple[list[Message], str]:
    """The messages before the assistant's last one, and what that begins the answer with.

    Raises:
        BadRequest: the last one is somebody else's.
    """
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        raise BadRequest("messages", "the last one must be the assistant's, and no call of a tool, to be continued")
    return messages[:-1], str(last["content"])


def max_tokens_of(asked: _Body) -> int | None:
    """The newer name counts where both are there. Raises BadRequest."""
    for name in ("max_completion_tokens", "max_tokens"):
        given: int | None = getattr(asked, name)
        if given is not None:
            return limit_of(given, name)
    return None


def limit_of(given: int | None, name: str) -> int | None:
    """A limit of tokens; -1 is none. Raises BadRequest."""
    return NO_LIMIT if given == -1 else whole_within(name, given, 1, NO_LIMIT)


class _Reasoning(Struct, frozen=True):
    effort: str | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    max_tokens: int | None = None
    summary: str | None = None


def _options(asked: _Body) -> tuple[dict[str, object], bool | None]:
    reasoning: _Reasoning = decoded(asked.reasoning, _Reasoning | None, "reasoning") or _Reasoning()
    if reasoning.exclude or reasoning.max_tokens is not None:
        raise BadRequest("reasoning", "only effort and enabled are supported")
    options, thinks = by_effort(asked.reasoning_effort)
    if asked.reasoning_effort is None:
        options, thinks = by_effort(reasoning.effort, "reasoning.effort")
    for on in (
        reasoning.enabled,
        asked.enable_thinking,
        by_switch(asked.thinking, "thinking"),
        by_switch(asked.think, "think"),
    ):
        if on is not None:
            options, thinks = {**options, **switched(on)}, on
    return {**options, **template_options(asked.chat_template_kwargs)}, thinks
