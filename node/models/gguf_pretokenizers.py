"""The pre-tokenizers that GGUF files name instead of describing them (`tokenizer.ggml.pre`).

The patterns are those of the models' own tokenizer.json. llama.cpp has the same, but for what its matcher lacks: it
takes `[^a-z]` and `[^A-Z]` for classes of letters in gpt-4o's and tekken's, and applies no normaliser.
"""

from __future__ import annotations

from dataclasses import dataclass

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before merges are looked at."""

    steps: tuple[Json, ...]
    normalizer: Json | None = None
    ignore_merges: bool = False
    """Whether a word that is itself a token is taken without looking at merges."""
    adds_bos: bool = False
    """Whether a text starts with the begin token where the file does not say."""


def byte_level(*, use_regex: bool) -> Json:
    """tokenizers' step that writes bytes as characters; with `use_regex` it cuts as GPT-2 does, too."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(*patterns: str) -> tuple[Json, ...]:
    cut: list[Json] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return (*cut, byte_level(use_regex=False))


_DIGITS: Json = {"type": "Digits", "individual_digits": True}
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_GPT2 = PreTokenizer((byte_level(use_regex=True),))
_QWEN2 = PreTokenizer(_split(_WORDS % r"\p{N}"), {"type": "NFC"})
_GPT4 = PreTokenizer(_split(_WORDS % r"\p{N}{1,3}"))
_LLAMA3 = PreTokenizer(_GPT4.steps, ignore_merges=True, adds_bos=True)
_GPT4O = PreTokenizer(_split(_CASED % (f"{_ENDS}?", f"{_ENDS}?", r"\p{N}{1,3}")))
_TEKKEN = PreTokenizer(_split(_CASED % ("", "", r"\p{N}")), ignore_merges=True, adds_bos=True)
_DEEPSEEK = PreTokenizer(_split(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK_WORDS))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo"), _GPT2),
    "smollm": PreTokenizer((_DIGITS, byte_level(use_regex=True))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "glm4", "chatglm-bpe"), _GPT4),
    **dict.fromkeys(("gpt-4o", "llama4", "minimax-m2"), _GPT4O),
    "tekken": _TEKKEN,
    "deepseek-v3": _DEEPSEEK,
}
"""By GGUF's name. An unknown one is refused: a wrong one gives plausible text from wrong token ids."""
