"""Damaged, lying and hostile GGUF files: each a sentence, never the end of the process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import LoadFailed
from tests.node.engine.llamacpp.chains import load_here


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def lying(data: bytes) -> bytes:
    return data[:8] + (2**60).to_bytes(8, "little") + data[16:]


def junk(data: bytes) -> bytes:
    return b"x" * 4096


def number(key: bytes, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = data.index(key) + len(key) + 4
        return data[:at] + value.to_bytes(4, "little") + data[at + 4 :]

    return change


@pytest.mark.parametrize("layers", [(0, 6), (2, 4), (4, 6)], ids=str)
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (half, "truncated"),
        (lying, "more than can be"),
        (junk, "not a GGUF file"),
        (number(b"llama.attention.head_count", 7), "llama.cpp refuses the model"),
        (number(b"llama.feed_forward_length", 3), "llama.cpp refuses the model"),
        (number(b"llama.block_count", 60), "says that it has 60 layers, and 6 are there"),
        (number(b"llama.embedding_length", 1 << 30), "no embedding as wide as it says"),
        (number(b"llama.embedding_length", 0), "no embedding as wide as it says"),
    ],
    ids=["half", "lying", "junk", "heads", "width", "layers", "hidden", "no width"],
)
def test_a_file_that_cannot_be_a_model_is_refused_with_a_reason(
    tiny_gguf: Path, tmp_path: Path, layers: tuple[int, int], damage: Callable[[bytes], bytes], match: str
) -> None:
    (tmp_path / "model.gguf").write_bytes(damage((tiny_gguf / "model.gguf").read_bytes()))
    with pytest.raises(LoadFailed, match=match):
        load_here(tmp_path, *layers)


def test_a_model_in_several_files_is_one_model(tiny_gguf: Path, tmp_path: Path) -> None:
    from node.engine.llamacpp.gguf_writing import Entry, write
    from node.engine.llamacpp.reading import read_whole

    whole = read_whole(tiny_gguf)
    assert whole is not None
    tensors = list(whole.tensors.values())
    parts = [tensors[:20], tensors[20:30], tensors[30:]]
    for number_, part in enumerate(parts):
        entries = [*whole.entries.values()] if number_ == 0 else []
        entries += [
            Entry("split.no", 2, number_),
            Entry("split.count", 2, 3),
            Entry("split.tensors.count", 5, len(tensors)),
        ]
        with (tmp_path / f"m-{number_ + 1:05}-of-00003.gguf").open("wb") as out:
            for _ in write(out, entries, part):
                pass
    for layers in ((0, 6), (1, 5)):
        one, several = load_here(tiny_gguf, *layers), load_here(tmp_path, *layers)
        assert one.info.weight_bytes == several.info.weight_bytes
        one.drop()
        several.drop()
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(LoadFailed, match=r"m-00002-of-00003.gguf.*missing"):
        load_here(tmp_path, 0, 6)
    shutil.rmtree(tmp_path)
