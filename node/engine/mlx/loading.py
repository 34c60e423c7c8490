"""Fills a range of an mlx-lm model with exactly its tensors; what another live stage holds already is shared.

A module at a time is brought into memory: its tensors are read, brought to the plan's dtype, and only then computed
and kept. A module that lacks a tensor, or has one left over or misshapen, is an error.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from node.engine.base import StageInfo, StageSpec
from node.engine.batches import MAX_BATCH_ROWS
from node.engine.memory import WorkerMemory
from node.engine.mlx.caches import BLOCK_TOKENS
from node.engine.mlx.config import read_config
from node.engine.mlx.gguf_source import GgufSource
from node.engine.mlx.hub_source import HubSource
from node.engine.mlx.library import model_of
from node.engine.mlx.probe import probe
from node.engine.mlx.slicing import Layout, Passing, check_range
from node.engine.mlx.stage import MlxStage
from node.errors import LoadFailed, ModelError
from node.weights.gguf_split import gguf_in
from node.weights.gguf_weights import GgufWeights
from node.wire.layer_range import layer_range
from node.wire.models import Quantise

NAMES_SHOWN = 3
MAX_SEQUENCES = 256
GROUP = 32
"""Columns that share a scale where we quantise."""
BITS: dict[Quantise, int] = {"int8": 8, "int4": 4}


class Source(Protocol):
    """Where tensors come from, by the names of mlx-lm's modules."""

    def names(self, prefix: str) -> set[str]: ...

    def has(self, name: str) -> bool: ...

    def take(self, prefix: str) -> dict[str, mx.array]: ...

    def grid(self, path: str, module: Any) -> dict[str, Any] | None: ...

    def identity(self, prefix: str) -> tuple[object, ...]: ...


class SharedModules:
    """The layers and outer modules that live stages hold. Holds none of them alive itself."""

    def __init__(self) -> None:
        self.held: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()
        self.memory = WorkerMemory(lambda: sum(map(bytes_of, list(self.held.values()))))
        """For them and the caches of those stages."""


def load_stage(spec: StageSpec, shared: SharedModules, batched: bool) -> Generator[None, None, MlxStage]:
    """Load the range of `spec`, one tensor between two yields. `batched`: whether decode steps share products.

    Raises:
        LoadFailed: says what is wrong with which file or tensor, or that memory is short.
    """
    asked = layer_range(spec.start, spec.end)
    try:
        return (yield from _load(spec, shared, batched, asked))
    except ModelError as error:
        raise LoadFailed(asked, str(error)) from error
    except MemoryError as error:
        raise LoadFailed(asked, "too little memory; assign fewer layers") from error
    except RuntimeError as error:  # how MLX says that the chip's memory is full
        if "allocate" in str(error):
            raise LoadFailed(asked, "too little memory; assign fewer layers") from error
        raise


def _load(spec: StageSpec, shared: SharedModules, batched: bool, asked: str) -> Generator[None, None, MlxStage]:
    started_s = time.perf_counter()
    folder = Path(spec.model_folder)
    config = read_config(folder, asked)
    gguf = gguf_in(folder)
    if gguf is not None and GgufWeights(gguf).rotary_interleaved:
        config["rope_traditional"] = True
    model = model_of(config, asked)
    family = str(config.get("model_type"))
    layout = Layout(model, family, asked)
    check_range(len(layout.layers), spec.start, spec.end)
    layout.hold(spec.start, spec.end)
    source: Source = (
        HubSource(folder, config, layout, spec.start, spec.end, asked) if gguf is None else GgufSource(gguf, asked)
    )
    if "lm_head" in model and not source.has("lm_head.weight"):
        if not config.get("tie_word_embeddings", True):
            raise LoadFailed(asked, "missing: lm_head.weight; the files and config.json do not belong together")
        model.pop("lm_head")
        model.tie_word_embeddings = True  # as the family's own `sanitize` does
    last = spec.end == len(layout.layers)
    filler = Filler(source, layout, spec, shared, asked)
    yield from filler.fill(_prefixes(layout, spec, last))
    whole = layout.cut(spec.start, spec.end, asked)
    stage = MlxStage(whole, filler.kept, lambda start, end: layout.cut(start, end, asked), batched=batched)
    try:
        probed = yield from probe(whole, mx_dtype(spec.dtype), batched=batched)
    except Exception as error:  # whatever the library raises: better now than in the first request
        raise LoadFailed(asked, f"its first step failed: {type(error).__name__}: {error}") from error
    per_token = max(1, sum(probed.layer_kv_bytes))
    stage.batched = batched and probed.can_batch
    how = "batched" if stage.batched else "alone"
    stage.serve(
        StageInfo(
            weight_bytes=sum(map(bytes_of, filler.kept)),
            kv_bytes_per_token=per_token,
            kv_tokens=spec.kv_bytes // per_token,
            load_s=time.perf_counter() - started_s,
            hidden_size=layout.width,
            dtype=spec.dtype,
            layer_ms=probed.layer_ms,
            head_ms=probed.head_ms,
            max_batch_rows=MAX_BATCH_ROWS,
            max_sequences=MAX_SEQUENCES,
            block_tokens=BLOCK_TOKENS,
            can_rewind=layout.can_rewind,
            keeps_prefixes=layout.can_rewind,
            backend="mlx",
            quantisation=", ".join(sorted(filler.kinds)) or spec.dtype,
            drift_class=f"mlx {mx.__version__} {mx.default_device().type.name} {spec.dtype} {spec.quantise} {how}",
        ),
        probed.layer_kv_bytes,
        shared.memory,
    )
    return stage


def _prefixes(layout: Layout, spec: StageSpec, last: bool) -> list[str]:
    """Of the modules that the stage consists of; others become nothing."""
    wanted = [f"model.layers.{layer}." for layer in range(spec.start, spec.end)]
    tied = last and not layout.head_names
    if spec.start == 0 or tied:
        wanted.append("model.embed_tokens.")
    else:
        layout.body.embed_tokens = Passing()
    if last:
        wanted += ["model.norm.", *(f"{name}." for name in layout.head_names)]
    else:
        layout.body.norm = Passing()
        for name in layout.head_names:
            layout.model[name] = Passing()
    return wanted


class Filler:
    """Brings modules into memory."""

    def __init__(self, source: Source, layout: Layout, spec: StageSpec, shared: SharedModules, asked: str) -> None:
        self._source, self._layout, self._spec, self._shared, self._asked = source, layout, spec, shared, asked
        self.kept: list[Any] = []
        """The modules that were asked for, in order."""
        self.kinds: set[str] = set()
        """What weights are held as, for people."""

    def fill(self, prefixes: list[str]) -> Generator[None, None, None]:
        """Have these modules in memory, from another stage or from the files."""
        for prefix in prefixes:
            key = (prefix, self._spec.dtype, self._spec.quantise, *self._source.identity(prefix))
            module = self._shared.held.get(key)
            if module is None:
                module = self._module(prefix)
                module = yield from self._filled(module, prefix)
                self._shared.held[key] = module
            self._put(prefix, module)
            self.kept.append(module)
            self.kinds |= _kinds(module, self._spec.dtype)

    def _module(self, prefix: str) -> Any:
        path = prefix.rstrip(".").split(".")
        if path[:2] == ["model", "layers"]:
            return self._layout.layers[int(path[2])]
        return getattr(self._layout.body if path[0] == "model" else self._layout.model, path[-1])

    def _put(self, prefix: str, module: Any) -> None:
        path = prefix.rstrip(".").split(".")
        if path[:2] == ["model", "layers"]:
            self._layout.layers[int(path[2])] = module
        else:
            setattr(self._layout.body if path[0] == "model" else self._layout.model, path[-1], module)

    def _filled(self, module: Any, prefix: str) -> Generator[None, None, Any]:
        holder = nn.Module()  # so that a module that is itself a leaf can be replaced by its quantised form
        holder.it = module

        def grid(path: str, leaf: Any) -> Any:
            return self._source.grid(prefix.rstrip(".") + path.removeprefix("it"), leaf) or False

        nn.quantize(holder, class_predicate=grid)
        module = holder.it
        given = {name.removeprefix(prefix): value for name, value in self._source.take(prefix).items()}
        expected = dict(tree_flatten(module.parameters()))
        missing, left_over = expected.keys() - given.keys(), given.keys() - expected.keys()
        if missing or left_over:
            found = f"; without use: {_some(left_over)}" if left_over else ""
            hint = "the files and config.json do not belong together"
            raise LoadFailed(self._asked, f"in {prefix}: missing: {_some(missing) or 'nothing'}{found}; {hint}")
        may_cast = getattr(self._layout.model, "cast_predicate", lambda _: True)
        for name, value in given.items():
            if value.shape != expected[name].shape:
                shapes = f"has the shape {list(value.shape)}, {list(expected[name].shape)} expected"
                raise LoadFailed(self._asked, f"tensor {prefix}{name} {shapes}")
            if mx.issubdtype(value.dtype, mx.floating) and may_cast(prefix + name):
                given[name] = value.astype(mx_dtype(self._spec.dtype))
        module.load_weights(list(given.items()))
        given.clear()
        expected.clear()
        if self._spec.quantise == "none":
            _multiply_out(holder, mx_dtype(self._spec.dtype))
        elif bits := BITS.get(self._spec.quantise):
            nn.quantize(holder, group_size=GROUP, bits=bits, class_predicate=_can_quantise)
        module = holder.it
        for _, value in tree_flatten(module.parameters()):
            mx.eval(value)
            yield
        return module


def _can_quantise(_: str, leaf: Any) -> bool:
    weight = getattr(leaf, "weight", None)
    return hasattr(leaf, "to_quantized") and weight is not None and weight.shape[-1] % GROUP == 0


def _multiply_out(holder: Any, dtype: Any) -> None:
    """Put modules of floating-point numbers in the place of quantised ones."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    plain_of = {nn.QuantizedLinear: nn.Linear, nn.QuantizedEmbedding: nn.Embedding, QuantizedSwitchLinear: SwitchLinear}
    for path, leaf in tree_flatten(holder.leaf_modules(), is_leaf=nn.Module.is_module):
        if (kind := plain_of.get(type(leaf))) is None:
            continue
        plain = kind.__new__(kind)
        nn.Module.__init__(plain)
        plain.weight = mx.dequantize(
            leaf.weight, leaf.scales, leaf.get("biases"), leaf.group_size, leaf.bits, mode=leaf.mode
        ).astype(dtype)
        if "bias" in leaf:
            plain.bias = leaf.bias
        owner_path, _, name = path.rpartition(".")
        owner = holder
        for step in owner_path.split(".") if owner_path else ():
            owner = owner[int(step)] if step.isdigit() else owner[step]
        owner[name] = plain


def _kinds(module: Any, dtype: str) -> set[str]:
    """How a module's matrices are held, for people; norms are left out."""
    found = set()
    for _, leaf in tree_flatten(module.leaf_modules(), is_leaf=nn.Module.is_module):
        if hasattr(leaf, "bits"):
            found.add(leaf.mode if leaf.mode != "affine" else f"{leaf.bits} bits in groups of {leaf.group_size}")
        elif hasattr(leaf, "weight") and leaf.weight.ndim > 1:
            found.add(dtype)
    return found


def bytes_of(module: Any) -> int:
    """Of a module's tensors."""
    return sum(int(value.nbytes) for _, value in tree_flatten(module.parameters()))


def mx_dtype(dtype: str) -> Any:
    """MLX's own of a dtype's name."""
    return getattr(mx, dtype)


def _some(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return ", ".join(listed[:NAMES_SHOWN]) + more
