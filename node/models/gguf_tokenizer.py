"""From GGUF metadata to tokenizer.json and its companions.

GGUF names a pre-tokenizer instead of describing it (`tokenizer.ggml.pre`), so each one must be known here. An unknown
one is refused: a wrong one gives plausible text from wrong token ids.
"""

from __future__ import annotations

import json

from node.errors import DamagedModel, UnsupportedModel
from node.weights.gguf_file import GgufFile

Json = dict[str, object]

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""ggml's types of tokens."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(*, use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> list[Json]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(use_regex=False)]


_DIGITS: Json = {"type": "Digits", "individual_digits": True}
_NFC: Json = {"type": "NFC"}
_QWEN = (_NFC, _split(_WORDS % r"\p{N}"), False)
_LLAMA3 = (None, _split(_WORDS % r"\p{N}{1,3}"), True)

PRE_TOKENIZERS: dict[str, tuple[Json | None, list[Json], bool]] = {
    "gpt-2": (None, [_byte_level(use_regex=True)], False),
    "smollm": (None, [_DIGITS, _byte_level(use_regex=True)], False),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
"""Normalizer, pre-tokenizers, and whether a word that is itself a token is taken without looking at merges."""


def tokenizer_files(file: GgufFile, vocab_size: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and, where the file has one, the chat template.

    Args:
        vocab_size: rows of the embedding; there may be fewer tokens.

    Raises:
        DamagedModel: metadata are missing, contradict one another, or make no tokenizer.
        UnsupportedModel: another kind of tokenizer, or an unknown pre-tokenizer.
    """
    where = str(file.path)
    tokens = file.texts("tokenizer.ggml.tokens")
    types = [int(kind) for kind in file.numbers("tokenizer.ggml.token_type")]
    if len(types) != len(tokens) or not 0 < len(tokens) <= vocab_size:
        raise DamagedModel(where, f"{len(tokens)} tokens, {len(types)} token types, {vocab_size} rows in the embedding")
    kind = file.text("tokenizer.ggml.model")
    if kind == "gpt2":
        parts = _bpe(file, tokens)
    elif kind == "llama":
        parts = _sentencepiece(file, tokens)
    else:
        raise UnsupportedModel(where, f'the tokenizer "{kind[:40]}"', "gpt2 (byte-level BPE) and llama (SentencePiece)")
    bos = _token_id(file, "bos_token_id", tokens)
    description: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        **parts,
        "post_processor": None,
    }
    if bos is not None and file.flag("tokenizer.ggml.add_bos_token", kind == "llama"):
        description["post_processor"] = _starts_with(tokens[bos], bos)
    text = json.dumps(description, ensure_ascii=False)
    _check_loads(where, text)
    return {"tokenizer.json": text.encode(), **_companions(file, tokens, bos)}


def _added_tokens(tokens: list[str], types: list[int]) -> list[Json]:
    plain: Json = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": text, **plain, "special": kind == CONTROL}
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and text
    ]


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Token texts and their ids; of two tokens with one text the first counts, as in llama.cpp."""
    vocabulary: dict[str, int] = {}
    for i, text in enumerate(tokens):
        vocabulary.setdefault(text, i)
    return vocabulary


def _bpe(file: GgufFile, tokens: list[str]) -> Json:
    name = file.text("tokenizer.ggml.pre", "none")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModel(str(file.path), f'the pre-tokenizer "{name[:40]}"', ", ".join(PRE_TOKENIZERS))
    normalizer, pre_tokenizers, ignore_merges = PRE_TOKENIZERS[name]
    vocabulary = _vocabulary(tokens)
    merges = [merge.split(" ") for merge in file.texts("tokenizer.ggml.merges")]
    for pair in merges:
        if len(pair) != 2 or any(part not in vocabulary for part in (*pair, "".join(pair))):
            raise DamagedModel(str(file.path), f"the merge {' '.join(pair)[:80]!r} is not one of two known tokens")
    return {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe_model(vocabulary, merges, ignore_merges=ignore_merges, unknown=None),
    }


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Json:
    """SentencePiece merges the pair with the highest score first: the scores become an order of merges."""
    scores = file.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise DamagedModel(str(file.path), f"{len(scores)} scores for {len(tokens)} tokens")
    vocabulary = _vocabulary(tokens)
    ranked: list[tuple[float, int, int, list[str]]] = []
    for text, i in vocabulary.items():
        for cut in range(1, min(len(text), 128)):
            left, right = vocabulary.get(text[:cut]), vocabulary.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[i], left, right, [text[:cut], text[cut:]]))
    ranked.sort(key=lambda entry: entry[:3])
    unknown = _token_id(file, "unknown_token_id", tokens)
    prefix = [{"type": "Prepend", "prepend": SPACE}] if file.flag("tokenizer.ggml.add_space_prefix", True) else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe_model(
            vocabulary,
            [pair for *_, pair in ranked],
            ignore_merges=False,
            unknown=None if unknown is None else tokens[unknown],
            byte_fallback=True,
        ),
    }


def _bpe_model(
    vocabulary: dict[str, int],
    merges: list[list[str]],
    *,
    ignore_merges: bool,
    unknown: str | None,
    byte_fallback: bool = False,
) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }


def _starts_with(text: str, token: int) -> Json:
    """A post-processor that puts the token at the start of plain text (chat templates write it themselves)."""
    special = {"SpecialToken": {"id": text, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]}},
    }


def _token_id(file: GgufFile, name: str, tokens: list[str]) -> int | None:
    token = file.optional_integer(f"tokenizer.ggml.{name}")
    if token is not None and token >= len(tokens):
        raise DamagedModel(str(file.path), f'the metadata key "tokenizer.ggml.{name}" is {token}, past the last token')
    return token


def _check_loads(where: str, description: str) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(description)
    except Exception as error:  # the library raises nothing narrower
        raise DamagedModel(where, f"its vocabulary makes no tokenizer ({error})") from error


def _companions(file: GgufFile, tokens: list[str], bos: int | None) -> dict[str, bytes]:
    eos, *others = (_token_id(file, f"{end}_token_id", tokens) for end in ("eos", "eot", "eom"))
    unknown, pad = _token_id(file, "unknown_token_id", tokens), _token_id(file, "padding_token_id", tokens)

    def text(token: int | None) -> str | None:
        return None if token is None else tokens[token]

    ends = [token for token in dict.fromkeys((eos, *others)) if token is not None]
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(bos),
        "eos_token": text(eos),
        "unk_token": text(unknown),
        "pad_token": text(pad),
        "clean_up_tokenization_spaces": False,
    }
    generation: Json = {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else eos, "pad_token_id": pad}
    generation |= _sampling(file)
    files = {
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1).encode(),
        "generation_config.json": json.dumps(generation, indent=1).encode(),
    }
    if template := file.optional_text("tokenizer.chat_template"):
        files["chat_template.jinja"] = template.encode()
    return files


def _sampling(file: GgufFile) -> Json:
    """What the file's makers recommend, as far as it is done here; the rest would be refused in a request too."""
    keys = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p"}
    found: Json = {
        name: file.metadata[key]
        for name, short in keys.items()
        if (key := f"general.sampling.{short}") in file.metadata
    }
    return {"do_sample": True, **found} if found else {}
