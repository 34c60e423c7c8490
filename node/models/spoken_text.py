"""Text of people and tools stays text: where it spells a special token, it does not become one.

A template works on the text itself (it trims it, looks into it, cuts it), so it gets the text as it is but for the
spelled special tokens, each of which one private character stands for. What the template gives back is made into token
ids as a whole, and only the pieces between special tokens that hold such a character are done again, with its meaning
put back and the tokenizer told to take special tokens for text. So a prompt that spells none has the ids that it always
had, those of transformers.

Special means what tokenizer.json says: a model's other added tokens (`<think>`, `<tool_call>` in some, runs of spaces
in others) are ordinary vocabulary, which texts may contain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from node.errors import BadRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Characters that mean nothing to anybody but those who agree upon it."""


class SpokenText:
    """One tokenizer's special tokens, and how to write text in which they mean nothing."""

    def __init__(self, tokenizer: Tokenizer, again: Callable[[], Tokenizer]) -> None:
        """Args:
        again: reads the same tokenizer once more, for when one is needed that takes special tokens for text.
        """
        self._tokenizer = tokenizer
        self._again = again
        self._plain: dict[bool, Tokenizer] = {}
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special and token.content}
        by_length = sorted(self._special, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, by_length))) if by_length else None

    def hidden(self, messages: Sequence[Mapping[str, object]]) -> tuple[list[dict[str, object]], dict[str, str]]:
        """The messages with a private character for each special token that they spell, and what each stands for.

        Raises:
            BadRequest: they leave no private character unused.
        """
        texts = [text for message in messages for text in _texts(message)]
        spelled = sorted({found for text in texts for found in (self._spelled.findall(text) if self._spelled else ())})
        if not spelled:
            return [dict(message) for message in messages], {}
        signs = dict(zip(spelled, _unused(texts, len(spelled)), strict=True))
        assert self._spelled is not None
        pattern = self._spelled

        def hide(value: object) -> object:
            if isinstance(value, str):
                return pattern.sub(lambda match: signs[match[0]], value)
            if isinstance(value, Mapping):
                return {hide(key): hide(item) for key, item in value.items()}
            return [hide(item) for item in value] if isinstance(value, list | tuple) else value

        hidden: list[dict[str, object]] = [{key: hide(value) for key, value in message.items()} for message in messages]
        return hidden, {sign: text for text, sign in signs.items()}

    def ids(self, text: str, meant: Mapping[str, str]) -> list[int]:
        """Token ids of a rendered prompt, in which private characters stand for the texts that are meant."""
        # The batch of one releases the interpreter's lock, which `encode` does not: a megabyte takes a second, during
        # which the node must go on answering its peers.
        if not meant:
            (fast,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
            return list(fast.ids)
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        special = set(self._special.values())
        ids: list[int] = []
        start = 0
        piece: list[int] = []
        for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in special:
                ids += self._piece(text[start:begin], piece, meant, first=start == 0)
                ids.append(token)
                start, piece = end, []
            else:
                piece.append(token)
        return ids + self._piece(text[start:], piece, meant, first=start == 0)

    def spelled_again(self, text: str, meant: Mapping[str, str]) -> str:
        """A rendered prompt as people read it, with what private characters stand for."""
        return _put_back(text, meant)

    def plain_ids(self, text: str, *, starts: bool = True) -> list[int]:
        """Token ids of a text of its own; where it `starts`, with the token that does so where the model has one."""
        spelled = self._spelled is not None and self._spelled.search(text)
        tokenizer = self._taking_all_for_text() if spelled else self._tokenizer
        (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=starts)
        return list(encoding.ids)

    def _piece(self, text: str, ids: list[int], meant: Mapping[str, str], *, first: bool) -> list[int]:
        """Ids of what lies between two special tokens: those that it has, unless something in it is meant otherwise."""
        if not any(sign in text for sign in meant):
            return ids
        tokenizer = self._taking_all_for_text(first=first)
        (encoding,) = tokenizer.encode_batch_fast([_put_back(text, meant)], add_special_tokens=False)
        return list(encoding.ids)

    def _taking_all_for_text(self, *, first: bool = True) -> Tokenizer:
        """A second tokenizer, since others encode with the first meanwhile, and a third for what does not begin a text,
        where the model puts a space before its very first word alone."""
        if getattr(self._tokenizer.pre_tokenizer, "prepend_scheme", None) != "first":
            first = True
        if first not in self._plain:
            plain = self._again()
            plain.encode_special_tokens = True
            if not first:
                before = plain.pre_tokenizer
                before.prepend_scheme = "never"
                plain.pre_tokenizer = before
            self._plain[first] = plain
        return self._plain[first]


def _put_back(text: str, meant: Mapping[str, str]) -> str:
    for sign, spelled in meant.items():
        text = text.replace(sign, spelled)
    return text


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for item in value for text in _texts(item)] if isinstance(value, list | tuple) else []


def _unused(texts: Sequence[str], count: int) -> list[str]:
    """Private characters that none of the texts has."""
    used = {
        ord(character) for text in texts if not text.isascii() for character in set(text) if ord(character) >= 0xF0000
    }
    free = (chr(code) for codes in PRIVATE for code in codes if code not in used)
    found = [character for character, _ in zip(free, range(count), strict=False)]
    if len(found) < count:
        raise BadRequest("messages", "they use every private character of Unicode; leave some out")
    return found
