"""From GGUF metadata to tokenizer.json and its companions.

Byte-level BPE, whose pre-tokenizer must be one that is known (`gguf_pretokenizers`), and SentencePiece.
"""

from __future__ import annotations

import json

from node.errors import DamagedModel, UnsupportedModel
from node.models.gguf_pretokenizers import PRE_TOKENIZERS, Json
from node.weights.gguf_file import GgufFile

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""ggml's types of tokens."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""


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
    if len(set(tokens)) != len(tokens):  # llama.cpp ends the process then
        raise DamagedModel(where, "two tokens have one text")
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
        "added_tokens": _added_tokens(tokens, types, _eats_space(file, kind)),
        **parts,
        "post_processor": None,
    }
    pre = PRE_TOKENIZERS.get(file.text("tokenizer.ggml.pre", "none"))
    adds_bos = kind == "llama" or (pre is not None and pre.adds_bos)
    if bos is not None and file.flag("tokenizer.ggml.add_bos_token", adds_bos):
        description["post_processor"] = _starts_with(tokens[bos], bos)
    text = json.dumps(description, ensure_ascii=False)
    _check_loads(where, text)
    return {"tokenizer.json": text.encode(), **_companions(file, tokens, types, bos)}


def _eats_space(file: GgufFile, kind: str) -> bool:
    """Whether white space after a special token is dropped: of Phi-3, which llama.cpp knows by its name, too."""
    name = file.optional_text("general.name") or ""
    return kind == "llama" and any(word in name.lower() for word in ("phi-3", "phi3"))


EATS_NOTHING = ("<unk>", "<s>", "<|endoftext|>")


def _added_tokens(tokens: list[str], types: list[int], eats_space: bool) -> list[Json]:
    plain: Json = {"single_word": False, "lstrip": False, "normalized": False}

    def rstrip(text: str, kind: int) -> bool:
        return eats_space and (kind == CONTROL or text == "</s>") and text not in EATS_NOTHING

    return [
        {"id": i, "content": text, **plain, "rstrip": rstrip(text, kind), "special": kind == CONTROL}
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and text
    ]


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Token texts and their ids."""
    return {text: i for i, text in enumerate(tokens)}


def _bpe(file: GgufFile, tokens: list[str]) -> Json:
    name = file.text("tokenizer.ggml.pre", "none")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModel(str(file.path), f'the pre-tokenizer "{name[:40]}"', ", ".join(PRE_TOKENIZERS))
    pre = PRE_TOKENIZERS[name]
    vocabulary = _vocabulary(tokens)
    merges = [merge.split(" ") for merge in file.texts("tokenizer.ggml.merges")]
    for pair in merges:
        if len(pair) != 2 or any(part not in vocabulary for part in (*pair, "".join(pair))):
            raise DamagedModel(str(file.path), f"the merge {' '.join(pair)[:80]!r} is not one of two known tokens")
    return {
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.steps)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe_model(vocabulary, merges, ignore_merges=pre.ignore_merges, unknown=None),
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


def _companions(file: GgufFile, tokens: list[str], types: list[int], bos: int | None) -> dict[str, bytes]:
    eos, *others = (_token_id(file, f"{end}_token_id", tokens) for end in ("eos", "eot", "eom"))
    unknown, pad = _token_id(file, "unknown_token_id", tokens), _token_id(file, "padding_token_id", tokens)

    def text(token: int | None) -> str | None:
        return None if token is None else tokens[token]

    told = [token for token in (eos, *others) if token is not None]
    if others[0] is None:  # llama.cpp then knows the end of a turn by its text
        told += ends_by_text(tokens, types)
    ends = list(dict.fromkeys(told))
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
    if template := _template(file):
        files["chat_template.jinja"] = template.encode()
    return files


TURN_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *(
            "<|endoftext|>",
            "<|end_of_text|>",
            "</s>",
            "<eos>",
            "<|return|>",
            "<|call|>",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
        ),
    }
)
"""Texts of control tokens that llama.cpp takes for the end of an answer."""


def ends_by_text(tokens: list[str], types: list[int]) -> list[int]:
    """Ids of control tokens that end an answer. Beside `<|return|>` and `<|call|>` (gpt-oss) `<|end|>` ends a part."""
    found = {
        text: i
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == CONTROL and text in TURN_ENDS
    }
    if {"<|return|>", "<|call|>"} <= found.keys():
        found.pop("<|end|>", None)
    return list(found.values())


def _template(file: GgufFile) -> str | None:
    """The chat template; where all have names, the one called `default`, or the first."""
    if template := file.optional_text("tokenizer.chat_template"):
        return template
    prefix = "tokenizer.chat_template."
    names = sorted(key for key in file.metadata if key.startswith(prefix))
    names.sort(key=lambda key: key != f"{prefix}default")
    return file.text(names[0]) if names else None


def _sampling(file: GgufFile) -> Json:
    """What the file's makers recommend, as far as it is done here; the rest would be refused in a request too."""
    keys = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p"}
    found: Json = {
        name: file.metadata[key]
        for name, short in keys.items()
        if (key := f"general.sampling.{short}") in file.metadata
    }
    return {"do_sample": True, **found} if found else {}
