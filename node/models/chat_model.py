"""A model's way with words: chat template, tokenizer, stop tokens. Knows no weights and computes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import BadRequest, DamagedModel, UnsupportedModel
from node.models.facts import context_tokens
from node.models.sampling import GENERATION_CONFIG, RecommendedSampling, recommended_sampling
from node.models.spoken_text import SpokenText
from node.models.template import Message, compile_template
from node.models.text_stream import TextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
"""Tokens that end a turn in the templates of known families; they count where the model's own template has them."""
STOP_TOKENS_LIMIT = 64

Json = Mapping[str, object]


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
    ) -> None:
        """Use `load`."""
        self.stop_tokens = stop_tokens
        """An answer ends with any of these."""
        self.context_tokens = context_tokens
        """Prompt and answer together may have that many tokens."""
        self.recommended = recommended
        """How to sample where a request does not say."""
        self._tokenizer = tokenizer
        self._special_tokens = dict(special_tokens)
        self._text = SpokenText(tokenizer, lambda: _tokenizer(folder))
        self._render = compile_template(template, str(folder)) if template is not None else None

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
        template = _template(folder, settings)
        stop_tokens = _stop_tokens(folder, tokenizer, special_tokens, template)
        recommended = recommended_sampling(_object(folder / GENERATION_CONFIG))
        return cls(folder, tokenizer, template, special_tokens, stop_tokens, context_tokens(folder), recommended)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt that these chat messages make, up to where the answer begins.

        Special tokens come from the template alone: text that spells one is text (see `spoken_text`). Otherwise the ids
        are those of transformers and llama.cpp.

        Raises:
            BadRequest: the model has no chat template, or its template does not take these messages.
        """
        if self._render is None:
            raise BadRequest("messages", "this model has no chat template: it completes text, it does not chat")
        hidden, meant = self._text.hidden([_plain(message) for message in messages])
        return self._text.ids(self._render(hidden, self._special_tokens), meant)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the token that starts a text where the model has one."""
        return self._text.plain_ids(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a whole answer, without special tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def stream(self) -> TextStream:
        """A decoder for one answer, token by token."""
        return TextStream(self.decode)


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


def _template(folder: Path, settings: Json) -> str | None:
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise DamagedModel(str(folder / "chat_template.jinja"), f"cannot be read ({error})") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


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
    spelled = [special_tokens.get("eos_token"), *(end for end in TURN_ENDS if template is not None and end in template)]
    tokens += [token for text in spelled if text is not None and (token := tokenizer.token_to_id(text)) is not None]
    return tuple(dict.fromkeys(tokens))[:STOP_TOKENS_LIMIT]


def _ids(value: object) -> Iterable[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]
