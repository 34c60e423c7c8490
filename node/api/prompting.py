"""From what a client asks for to token ids, within the model's context. Knows no HTTP and no dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import trio

from node.api.asking import Chat, Plain, Prompt
from node.api.dialects.tools import schemas
from node.api.speech.reader import plain_reader, reader
from node.api.speech.reading import Reading
from node.errors import BadRequest, TooManyTokens
from node.models import ChatModel

MOST_CHARACTERS_PER_TOKEN = 32
"""Prose has four; beyond this a text is not worth counting exactly."""

PROMPTS_AT_ONCE = 4
"""Rendered and made into tokens at a time, each within the limits of its template: they share one processor."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt as token ids."""

    ids: list[int]
    text: str
    """A plain prompt's own text; empty for a chat."""
    prompt: Prompt
    end: str
    """The last characters of a chat's rendered prompt."""

    def reader(self, chat_model: ChatModel) -> Reading:
        """For one answer to it."""
        if isinstance(self.prompt, Plain):
            return plain_reader()
        tools = schemas(self.prompt.tools) if self.prompt.tools else None
        return reader(chat_model.speech, self.end, tools)


class Prompting:
    """Makes prompts, a few at a time, in threads."""

    def __init__(self) -> None:
        self._renderers = trio.CapacityLimiter(PROMPTS_AT_ONCE)

    async def prompted(self, prompt: Prompt, chat_model: ChatModel, vocabulary: int) -> Prompted:
        """Token ids of the prompt.

        Raises:
            BadRequest: the model's template does not take it, or it leaves no room in the context.
        """
        characters = _characters(prompt)
        if characters > chat_model.context_tokens * MOST_CHARACTERS_PER_TOKEN:
            least = characters // MOST_CHARACTERS_PER_TOKEN
            raise TooManyTokens(prompt.where, least, chat_model.context_tokens, at_least=True)
        made = await trio.to_thread.run_sync(_made, prompt, chat_model, vocabulary, limiter=self._renderers)
        if len(made.ids) >= chat_model.context_tokens:
            raise TooManyTokens(prompt.where, len(made.ids), chat_model.context_tokens)
        return made

    async def text(self, chat: Chat, chat_model: ChatModel) -> str:
        """A chat's prompt as its template writes it. Raises the same."""
        return await trio.to_thread.run_sync(_rendered, chat, chat_model, limiter=self._renderers)


def _made(prompt: Prompt, chat_model: ChatModel, vocabulary: int) -> Prompted:
    if isinstance(prompt, Chat):
        require_switch(prompt, chat_model)
        rendered = chat_model.prompt(prompt.messages, prompt.tools, prompt.options, prompt.prefill)
        return Prompted(rendered.ids, "", prompt, rendered.end)
    if isinstance(prompt.text, str):
        ids = chat_model.encode(prompt.text, starts=prompt.starts)
        if not ids:
            raise BadRequest(prompt.where, "is empty, and this model has no token that starts a text")
        return Prompted(ids, prompt.text, prompt, "")
    ids = list(prompt.text)
    if not ids or min(ids) < 0 or max(ids) >= vocabulary:
        raise BadRequest(prompt.where, f"must be token ids from 0 to {vocabulary - 1}")
    return Prompted(ids, chat_model.decode(ids), prompt, "")


def _rendered(chat: Chat, chat_model: ChatModel) -> str:
    require_switch(chat, chat_model)
    return chat_model.prompt_text(chat.messages, chat.tools, chat.options, chat.prefill)


def require_switch(chat: Chat, chat_model: ChatModel) -> None:
    """Raises BadRequest where a model shall not think that thinks always."""
    if chat.thinks is False and chat_model.speech.thinks and not chat_model.speech.switches:
        raise BadRequest(None, "this model thinks before every answer; its template cannot turn that off")


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt, Chat):
        return sum(len(text) for text in _texts([prompt.messages, prompt.tools, prompt.options, prompt.prefill]))
    return len(prompt.text)


def _texts(value: object) -> Iterable[str]:
    """Every text in it, however it is nested."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            waiting += each.keys()
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
