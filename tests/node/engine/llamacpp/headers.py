"""Headers of GGUF models without any file, for what is decided by headers alone."""

from __future__ import annotations

from pathlib import Path

from node.engine.llamacpp.cutting import EMBEDDING, HEAD, NORM, WholeModel
from node.engine.llamacpp.gguf_writing import Entry, Source, Tensor
from tests.node.engine.llamacpp.tiny_models import LAYERS, SIZES, VOCABULARY, WIDTH, Value, entry_of


def whole_of(architecture: str, **changes: Value) -> WholeModel:
    """A model of this family with a few tensors a layer."""
    sizes = {**SIZES, **changes}
    entries = [Entry("general.architecture", 8, architecture), Entry("tokenizer.ggml.tokens", 8, ("a", "b"))]
    entries += [entry_of(f"{architecture}.{name}", value) for name, value in sizes.items()]
    layers = sizes.get("block_count", LAYERS)
    assert isinstance(layers, int)
    names = [EMBEDDING, HEAD, NORM, *(f"blk.{layer}.attn_q.weight" for layer in range(layers))]
    tensors = {name: _tensor(name, number) for number, name in enumerate(names)}
    return WholeModel((Path("model.gguf"),), {entry.key: entry for entry in entries}, tensors)


def _tensor(name: str, number: int) -> Tensor:
    shape = (VOCABULARY if name in (EMBEDDING, HEAD) else WIDTH, WIDTH)
    return Tensor(name, 0, shape, shape[0] * shape[1] * 4, Source(Path("model.gguf"), number * 100_000))
