"""Makes a stage: reads what the layers are like, makes their parts one after another, tries them, and counts."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from statistics import median

import numpy as np

from node.engine.base import BLOCK_TOKENS, PROBE_BUDGET_S, PROBE_MOST_STEPS, PROBE_SLOW_STEP_S, StageInfo, StageSpec
from node.engine.batches import MAX_BATCH_ROWS
from node.engine.ort.chain import Chain
from node.engine.ort.config import read_config
from node.engine.ort.kv_memory import KvMemory
from node.engine.ort.library import ort
from node.engine.ort.linear import Arithmetic
from node.engine.ort.part_store import HEAD, PartStore
from node.engine.ort.parts import Source, spans
from node.engine.ort.rope import Rope, rope_of
from node.engine.ort.shape import Attention, ModelShape, shape_of
from node.engine.ort.slots import Slots
from node.engine.ort.stage import OrtStage
from node.engine.ort.tables import Tables
from node.errors import DamagedModel, LoadFailed, ModelError
from node.weights.base import Weights
from node.weights.folder import open_weights
from node.weights.small import is_small
from node.wire.layer_range import layer_range

FREE_SHARE = 0.85
"""Of the memory that is free, which weights that may be widened can take."""
UNKNOWN_CONTEXT = 131_072
"""Tokens of one sequence where a config does not say how many the model was made for."""


def load_stage(spec: StageSpec, store: PartStore) -> Generator[float | None, None, OrtStage]:
    """Load the range of `spec`; yields while a part is made.

    Raises:
        LoadFailed: says what is wrong with which file or tensor, or that memory is short.
    """
    asked = layer_range(spec.start, spec.end)
    try:
        return (yield from _load(spec, store, asked))
    except ModelError as error:
        raise LoadFailed(asked, str(error)) from error
    except MemoryError as error:
        raise LoadFailed(asked, "too little memory; assign fewer layers") from error
    except OSError as error:
        raise LoadFailed(asked, f"a file of {spec.model_folder} cannot be read: {error}") from error


def _load(spec: StageSpec, store: PartStore, asked: str) -> Generator[float | None, None, OrtStage]:
    started_s = time.perf_counter()
    folder = Path(spec.model_folder)
    model = shape_of(read_config(folder))
    if not 0 <= spec.start < spec.end <= len(model.layers):
        raise LoadFailed(asked, f"the model has {len(model.layers)} layers")
    weights = open_weights(folder)
    source = Source(model, weights, arithmetic_of(spec, weights))
    ropes = _ropes(model, weights, folder)
    layer_bytes = [weights.layer_bytes(layer) for layer in range(len(model.layers))]
    wanted = spans(layer_bytes, spec.start, spec.end)
    last = spec.end == len(model.layers)
    parts = yield from store.load(source, [*wanted, *([HEAD] if last else [])])
    head = parts.pop() if last else None

    attentions = [model.layers[layer].attention for layer in range(spec.start, spec.end)]
    kv_bytes = tuple(4 * attention.kv_floats for attention in attentions)
    per_token = sum(kv_bytes)
    shapes = [
        (one.kv_heads, one.head_size) if isinstance(one, Attention) else (1, one.rank + one.turned)
        for one in attentions
    ]
    kv_tokens = spec.kv_bytes // per_token // BLOCK_TOKENS * BLOCK_TOKENS
    context = model.context or UNKNOWN_CONTEXT
    kv = KvMemory(shapes, context, max(kv_tokens, 1))
    longest = min(context, kv.room - 1)
    chain = Chain(source, parts, head, kv, Tables(ropes, kv.room), store)
    layers_s, head_s = yield from _probe(chain, asked)
    kv.give_back(kv.spare)
    info = StageInfo(
        weight_bytes=sum(part.weight_bytes for part in [*parts, *([head] if head else [])]),
        kv_bytes_per_token=per_token,
        kv_tokens=kv_tokens,
        load_s=time.perf_counter() - started_s,
        hidden_size=model.hidden,
        dtype=spec.dtype,
        layer_ms=1e3 * layers_s / (spec.end - spec.start),
        head_ms=1e3 * head_s if last else None,
        max_batch_rows=MAX_BATCH_ROWS,
        max_sequences=kv.slots,
        block_tokens=BLOCK_TOKENS,
        can_rewind=True,
        can_narrow=True,
        keeps_prefixes=True,
        backend="ort",
        quantisation=_quantisation(weights, source.arithmetic, spec.start),
        drift_class=f"onnxruntime {ort.__version__} {source.arithmetic}",
    )
    one_table = min((rope.longest for rope in ropes.values() if rope.longest is not None), default=None)
    slots = Slots(spec.start, kv_bytes, kv_tokens * per_token, longest, kv, store.memory, one_table)
    return OrtStage(info, chain, slots, store.memory)


def arithmetic_of(spec: StageSpec, weights: Weights) -> Arithmetic:
    """How the weights are held.

    `auto`: a small model's in float32, others as they are stored; 16-bit ones in float32 where there is memory for
    that, else in int8. On a processor without kernels for 16 bits there is nothing between.
    """
    if spec.quantise in ("int8", "int4"):
        return spec.quantise
    if spec.quantise == "none" or is_small(Path(spec.model_folder)):
        return "float32"
    if weights.stored(spec.start, "attn_output") not in ("F16", "BF16"):
        return "stored"
    import psutil

    stored_bytes = sum(weights.layer_bytes(layer) for layer in range(spec.start, spec.end))
    free_bytes = psutil.virtual_memory().available * FREE_SHARE - spec.kv_bytes
    return "stored" if 2 * stored_bytes <= free_bytes else "int8"


def _quantisation(weights: Weights, arithmetic: Arithmetic, layer: int) -> str:
    """For people."""
    if arithmetic != "stored":
        return arithmetic
    roles = ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_gate_exps", "ffn_down_exps")
    kinds = {weights.stored(layer, role) for role in roles if weights.has(layer, role)}
    widened = {"float32" if kind in ("F16", "BF16", "F32") else kind for kind in kinds}
    return ", ".join(sorted(widened))


def _ropes(model: ModelShape, weights: Weights, folder: Path) -> dict[str, Rope]:
    config = read_config(folder)
    extra = weights.vector(None, "rope_freqs") if weights.has(None, "rope_freqs") else None
    if extra is not None and extra.shape != (model.rotary // 2,):
        raise DamagedModel(str(folder), f"rope_freqs has {len(extra)} factors for {model.rotary // 2} frequencies")
    return {name: rope_of(config, parameters, model.rotary, extra) for name, parameters in model.ropes.items()}


def _probe(chain: Chain, asked: str) -> Generator[None, None, tuple[float, float]]:
    """Seconds that the layers, and the head, take for a decode step: the median of a few; and whether they compute.

    The first step warms up and is not counted, unless it is so slow that it is the measurement.
    """
    out, *first = _tried(chain, 0, asked)
    if not np.isfinite(out).all():
        raise LoadFailed(asked, "its first step gives NaN or infinite numbers: weights are damaged; fetch them again")
    yield
    timed: list[list[float]] = []
    until_s = time.perf_counter() + PROBE_BUDGET_S
    if sum(first) > PROBE_SLOW_STEP_S:
        timed, until_s = [first], 0.0
    while not timed or (len(timed) < PROBE_MOST_STEPS and time.perf_counter() < until_s):
        _, *seconds = _tried(chain, len(timed) + 1, asked)
        timed.append(seconds)
        yield
    return median(layers_s for layers_s, _ in timed), median(head_s for _, head_s in timed)


def _tried(chain: Chain, position: int, asked: str) -> tuple[np.ndarray, float, float]:
    try:
        return chain.try_out(position)
    except Exception as error:  # whatever the library raises: better now than in the first request
        raise LoadFailed(asked, f"its first step failed: {type(error).__name__}: {error}") from error
