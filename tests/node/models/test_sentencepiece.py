"""SentencePiece scores, turned into merges, cut text as SentencePiece does."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from gguf import GGUFWriter, TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from node.models import ChatModel
from node.models.gguf_folder import make_folder
from node.models.progress import ignore_progress

PIECES = ["▁", "a", "b", "c", "ab", "▁a", "bc", "abc", "▁ab", "ca", "▁c", "aab", "▁abc", "cc"]
SPECIAL = ["<unk>", "<s>", "</s>"]
TOKENS = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
SCORES = [0.0] * (len(SPECIAL) + 256) + [
    -10.0,
    -11.0,
    -12.0,
    -13.0,
    -2.0,
    -1.0,
    -4.0,
    -3.0,
    -5.0,
    -6.0,
    -7.0,
    -0.5,
    -8.0,
    -9.0,
]
TYPES = (
    [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    + [TokenType.BYTE] * 256
    + [TokenType.NORMAL] * len(PIECES)
)


def sentencepiece(text: str) -> list[int]:
    """Merge the neighbours whose union scores best, the leftmost of equals, while there are any."""
    scores = dict(zip(TOKENS, SCORES, strict=True))
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in PIECES]
        if not unions:
            break
        _, i = min(unions)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids = []
    for part in parts:
        ids += [TOKENS.index(part)] if part in PIECES else [len(SPECIAL) + byte for byte in part.encode()]
    return ids


def sentencepiece_metadata(writer: GGUFWriter) -> None:
    for key in ("tokens", "token_type", "merges", "model", "bos_token_id", "eos_token_id", "padding_token_id"):
        for data in writer.kv_data:
            data.pop(f"tokenizer.ggml.{key}", None)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores(SCORES)
    writer.add_token_types([int(kind) for kind in TYPES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def load(make_gguf: Callable[..., Path], tmp_path: Path) -> Tokenizer:
    out = tmp_path / "spm"
    if not out.exists():
        out.mkdir()
        make_folder(make_gguf("llama", rows=len(TOKENS) + 7, extra=sentencepiece_metadata), out, ignore_progress)
    return Tokenizer.from_file(str(out / "tokenizer.json"))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(alphabet="abc é🙂", min_size=1, max_size=12))
def test_text_is_cut_as_sentencepiece_cuts_it(make_gguf: Callable[..., Path], tmp_path: Path, text: str) -> None:
    tokenizer = load(make_gguf, tmp_path)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == sentencepiece(text)
    assert tokenizer.decode(ids) == text


def test_plain_text_starts_with_the_token_that_the_file_asks_for(
    make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    load(make_gguf, tmp_path)
    chat = ChatModel.load(tmp_path / "spm")
    assert chat.encode("a")[0] == 1
    assert chat.stop_tokens == (2,)
    config = json.loads((tmp_path / "spm" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["unk_token"]) == ("<s>", "<unk>")
    stream = chat.stream()
    text = "".join(stream.push(token) for token in chat.encode("a é b")) + stream.finish()
    assert text == "a é b"
