"""The sizes that a GGUF file's metadata tell, checked at the door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from node.errors import DamagedModel, UnsupportedModel
from node.weights.gguf_file import GgufFile

Config = dict[str, object]
Integer = Callable[..., int]
"""`integer(key, default)`, of one architecture."""

SIZE_LIMIT = 1_000_000_000
LAYERS_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Latent:
    """Sizes of latent attention (MLA)."""

    query_rank: int
    """0 where queries are not compressed."""
    rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True, slots=True)
class Experts:
    """Sizes of a mixture of experts."""

    count: int
    chosen: int
    inner: int
    shared: int
    """Experts that every token visits."""
    dense_layers: int
    """Leading layers without experts."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one model."""

    architecture: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    """Dimensions of a head that are turned."""
    context: int
    vocabulary: int
    experts: Experts | None
    latent: Latent | None


def as_float32(value: float) -> float:
    """The shortest decimal that names the same float32: 1e-05, where the file's bytes say 9.99999974e-06."""
    import numpy as np

    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def read_sizes(file: GgufFile, architecture: str, supported: str) -> Sizes:
    """The model's sizes.

    Raises:
        DamagedModel: one is missing or absurd, or they contradict one another.
        UnsupportedModel: layers of unequal sizes, or a rotation that the family does not have.
    """
    where = str(file.path)
    integer: Integer = partial(_integer, file, architecture, supported)
    heads, hidden = integer("attention.head_count"), integer("embedding_length")
    kv_heads = integer("attention.head_count_kv", heads)
    latent = _latent(file, architecture, integer) if architecture == "deepseek2" else None
    head_dim = latent.nope + latent.rope if latent else integer("attention.key_length", max(hidden // heads, 1))
    rope_dim = integer("rope.dimension_count", head_dim)
    if latent is None:
        if integer("attention.value_length", head_dim) != head_dim:
            raise UnsupportedModel(where, "values of another width than keys", supported)
        if heads % kv_heads or head_dim % 2:
            raise DamagedModel(where, f"{heads} heads, {kv_heads} of keys and values, {head_dim} wide")
        if rope_dim != head_dim and architecture not in PARTLY_TURNED:
            raise UnsupportedModel(where, "rotation of a part of each head", supported)
        if rope_dim > head_dim or rope_dim % 2:
            raise DamagedModel(where, f"{rope_dim} dimensions of heads {head_dim} wide are turned")
    layers = integer("block_count") - file.integer(f"{architecture}.nextn_predict_layers", 0)
    if not 1 <= layers <= LAYERS_LIMIT or layers > len(file.tensors):
        raise DamagedModel(where, f"{layers} layers are claimed, there are {len(file.tensors)} tensors")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DamagedModel(where, "the tensor token_embd.weight is missing, or no matrix")
    experts = _experts(file, architecture, integer, layers) if architecture in MIXTURES else None
    inner = experts.inner if experts and architecture in ALL_EXPERTS else integer("feed_forward_length")
    return Sizes(
        architecture,
        hidden,
        inner,
        layers,
        heads,
        kv_heads,
        head_dim,
        rope_dim,
        integer("context_length"),
        embedding.shape[0],
        experts,
        latent,
    )


def _integer(file: GgufFile, architecture: str, supported: str, key: str, default: int | None = None) -> int:
    """A size from 1 on; where there is one for each layer, they must be equal."""
    where, name = str(file.path), f"{architecture}.{key}"
    value = file.metadata.get(name)
    if isinstance(value, tuple):
        if len(set(value)) != 1:
            raise UnsupportedModel(where, f'a model whose layers differ in "{name}"', supported)
        value = value[0]
    else:
        value = file.integer(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= SIZE_LIMIT:
        raise DamagedModel(where, f'the metadata key "{name}" is {value}')
    return value


PARTLY_TURNED = frozenset({"phi3", "glm4moe", "minimax-m2"})
MIXTURES = frozenset({"qwen3moe", "gpt-oss", "glm4moe", "minimax-m2", "deepseek2"})
ALL_EXPERTS = frozenset({"gpt-oss", "minimax-m2"})
"""Mixtures whose config calls an expert's width the model's."""


def _latent(file: GgufFile, name: str, integer: Integer) -> Latent:
    rope = integer("rope.dimension_count")
    key = integer("attention.key_length_mla", integer("attention.key_length"))
    value = integer("attention.value_length_mla", integer("attention.value_length"))
    if key <= rope:
        raise DamagedModel(str(file.path), f"keys are {key} wide, {rope} of it are turned")
    query_rank = file.integer(f"{name}.attention.q_lora_rank", 0)
    return Latent(query_rank, integer("attention.kv_lora_rank"), key - rope, rope, value)


def _experts(file: GgufFile, name: str, integer: Integer, layers: int) -> Experts:
    count, chosen = integer("expert_count"), integer("expert_used_count")
    dense = file.integer(f"{name}.leading_dense_block_count", 0)
    if chosen > count or dense > layers:
        raise DamagedModel(str(file.path), f"{chosen} of {count} experts, {dense} of {layers} layers without")
    default = integer("feed_forward_length") if name in ALL_EXPERTS else None
    inner = integer("expert_feed_forward_length", default)
    return Experts(count, chosen, inner, file.integer(f"{name}.expert_shared_count", 0), dense)
