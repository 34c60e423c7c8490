"""A model's way with words: chat template, tokenizer, stop tokens. Knows no weights and computes nothing.

Tools are put into the prompt by the model's own template. Where it has no place for them, `told_tools` says them in
words.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import BadRequest, DamagedModel, UnsupportedModel
from node.models.facts import context_tokens
from node.models.sampling import GENERATION_CONFIG, RecommendedSampling, recommended_sampling
from node.models.speech import MARKS, Speech, speech
from node.models.spoken_text import SpokenText
from node.models.template import NOTHING, Message, compile_template
from node.models.text_stream import MarkedStream, TextStream
from node.models.told_tools import short_ids, with_thinking, with_written_arguments, without_tools

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
"""Tokens that end a turn in the templates of known families; they count where the model's own template has them."""
STOP_TOKENS_LIMIT = 64

TURN_GOES_ON = ("<|channel|>", "<|end|>")
"""Where a template has the first, the second ends a message and not the turn: `<|return|>` and `<|call|>` end that."""
CHANNEL_ENDS = ("<|return|>", "<|call|>")

END_CHARACTERS = 64

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt."""

    ids: list[int]
    end: str
    """The last characters of its text, in which a template may have begun the answer, as with `<think>`."""


class ChatModel:
    """Messages to token ids, and token ids back to text, for one model folder."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        template: str | None,
        special_tokens: Mapping[str, str],
        stop_tokens: tuple[int, ...],
        context_tokens: int,
        recommended: RecommendedSampling,
        with_tools: str | None = None,
    ) -> None:
        """Use `load`. `with_tools` is the template for chats with tools, where it is another one."""
        self.stop_tokens = stop_tokens
        """An answer ends with any of these."""
        self.context_tokens = context_tokens
        """Prompt and answer together may have that many tokens."""
        self.recommended = recommended
        """How to sample where a request does not say."""
        self.goes_round = False
        """It is known to repeat itself without an end."""
        self._tokenizer = tokenizer
        self._special_tokens = dict(special_tokens)
        self._text = SpokenText(tokenizer, lambda: _tokenizer(folder))
        self._render = compile_template(template, str(folder)) if template is not None else None
        self.template = template
        """As the model's author wrote it."""
        self._render_tools = self._render if with_tools is None else compile_template(with_tools, str(folder))
        self.speech: Speech = speech(with_tools or template, lambda text: tokenizer.token_to_id(text) is not None)
        """How it writes thoughts and calls of tools."""
        special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._marks = {special[mark]: mark for mark in MARKS if mark in special}
        self._wants_short_ids = "length 9" in (with_tools or template or "")

    @classmethod
    def load(cls, folder: Path) -> ChatModel:
        """Read tokenizer, chat template and the configs beside them.

        Raises:
            DamagedModel: a file is missing or cannot be read.
            UnsupportedModel: the tokenizer is there in another form than tokenizer.json.
        """
        tokenizer = _tokenizer(folder)
        settings = _object(folder / "tokenizer_config.json")
        special_tokens = _special_tokens(folder, settings)
        template, with_tools = _templates(folder, settings)
        stop_tokens = _stop_tokens(folder, tokenizer, special_tokens, template)
        recommended = recommended_sampling(_object(folder / GENERATION_CONFIG))
        context = context_tokens(folder)
        return cls(folder, tokenizer, template, special_tokens, stop_tokens, context, recommended, with_tools)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt that these chat messages make, up to where the answer begins. Raises as `prompt`."""
        return self.prompt(messages).ids

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Json] = (),
        options: Mapping[str, object] = NOTHING,
        prefill: str = "",
    ) -> Prompt:
        """The prompt that these chat messages make, up to where the answer begins.

        `tools` are definitions in OpenAI's form, `options` what its template may know beside, and `prefill` what the
        answer begins with. Special tokens come from the template alone: text that spells one is text (see
        `spoken_text`), wherever it comes from. Otherwise the ids are those of transformers and llama.cpp.

        Raises:
            BadRequest: the model has no chat template, or its template does not take these messages.
        """
        text, meant = self._rendered(messages, tools, options, prefill)
        return Prompt(self._text.ids(text, meant), text[-END_CHARACTERS:])

    def prompt_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Json] = (),
        options: Mapping[str, object] = NOTHING,
        prefill: str = "",
    ) -> str:
        """The same as text. Raises the same."""
        text, meant = self._rendered(messages, tools, options, prefill)
        return self._text.spelled_again(text, meant)

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Json], options: Mapping[str, object], prefill: str
    ) -> tuple[str, dict[str, str]]:
        if self._render is None:
            raise BadRequest("messages", "this model has no chat template: it completes text, it does not chat")
        said: list[dict[str, object]] = [_plain(message) for message in messages]
        if not self.speech.takes_tools:
            said, tools = without_tools(said, tools), ()
        elif self.speech.family == "harmony":
            said = with_thinking(said)
        elif self._wants_short_ids:
            said = short_ids(said)
        (*hidden, beside), meant = self._text.hidden([*said, {**options, "tools": list(tools), "prefill": prefill}])
        definitions, begun = beside.pop("tools"), str(beside.pop("prefill"))
        assert isinstance(definitions, list)
        render = self._render_tools if definitions and self._render_tools is not None else self._render
        try:
            return render(hidden, self._special_tokens, definitions, beside) + begun, meant
        except BadRequest:
            written = with_written_arguments(hidden)
            if written is None:
                raise
            return render(written, self._special_tokens, definitions, beside) + begun, meant

    def encode(self, text: str, *, starts: bool = True) -> list[int]:
        """Token ids of plain text; where it `starts`, with the token that starts a text where the model has one."""
        return self._text.plain_ids(text, starts=starts)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a whole answer, without special tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """One token's text, by itself; special ones are spelled."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def stream(self) -> TextStream:
        """A decoder for one answer, token by token."""
        return TextStream(self.decode)

    def marked_stream(self) -> MarkedStream:
        """The same, with the special tokens spelled that say how the answer is to be read."""
        return MarkedStream(self.decode, self._marks)


def _plain(message: Message) -> dict[str, object]:
    """The message with its parts joined, since few templates take a list of parts.

    Raises:
        BadRequest: a part is no text.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if any(not isinstance(text, str) for text in texts):
        raise BadRequest("messages", "only parts of type text can be taken")
    return {**message, "content": "".join(map(str, texts))}


def _object(path: Path) -> dict[str, object]:
    """A JSON object from a file; empty where there is no file.

    Raises:
        DamagedModel: the file cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedModel(str(path), f"cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise DamagedModel(str(path), "is not a JSON object")
    return value


def _tokenizer(folder: Path) -> Tokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or it warns at every process that is started later
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        if any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
            raise UnsupportedModel(str(folder), "a tokenizer without tokenizer.json", "tokenizer.json")
        raise DamagedModel(str(path), "is missing")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DamagedModel(str(path), f"cannot be read ({error})") from error


def _special_tokens(folder: Path, settings: Json) -> dict[str, str]:
    """`bos_token`, `eos_token` and so on, which templates use by name."""
    found = {}
    for source in (_object(folder / "special_tokens_map.json"), settings):
        for name, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
    return found


def _templates(folder: Path, settings: Json) -> tuple[str | None, str | None]:
    """The template, and the one for chats with tools where there are two."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8"), None
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise DamagedModel(str(folder / "chat_template.jinja"), f"cannot be read ({error})") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        found = [text if isinstance(text := named.get(name), str) else None for name in ("default", "tool_use")]
        return found[0], found[1]
    return (template if isinstance(template, str) else None), None


def _stop_tokens(
    folder: Path, tokenizer: Tokenizer, special_tokens: Mapping[str, str], template: str | None
) -> tuple[int, ...]:
    vocab_size = tokenizer.get_vocab_size()
    tokens = [
        token
        for file in (GENERATION_CONFIG, "config.json")
        for token in _ids(_object(folder / file).get("eos_token_id"))
        if 0 <= token < vocab_size
    ]
    ends = [end for end in TURN_ENDS if template is not None and end in template]
    goes_on: int | None = None
    if template is not None and TURN_GOES_ON[0] in template:
        ends = [*(end for end in ends if end != TURN_GOES_ON[1]), *CHANNEL_ENDS]
        goes_on = tokenizer.token_to_id(TURN_GOES_ON[1])
    spelled = [special_tokens.get("eos_token"), *ends]
    tokens += [token for text in spelled if text is not None and (token := tokenizer.token_to_id(text)) is not None]
    return tuple(dict.fromkeys(token for token in tokens if token != goes_on))[:STOP_TOKENS_LIMIT]


def _ids(value: object) -> Iterable[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]
