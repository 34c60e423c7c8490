"""Loads a range of a model folder's GGUF: header, cut, the library's own loading, a probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path

from node.engine.base import StageInfo, StageSpec
from node.engine.batches import MAX_BATCH_ROWS
from node.engine.llamacpp.context import CallFailed, Context
from node.engine.llamacpp.cutting import WholeModel, cut, refuse_range
from node.engine.llamacpp.families import FAMILIES, PLAIN
from node.engine.llamacpp.library import Library
from node.engine.llamacpp.model import Model, Placement, load_part, load_whole
from node.engine.llamacpp.probing import SHORT_STREAM_TOKENS, probe
from node.engine.llamacpp.reading import Embedding, embedding_scale, read_whole, types_of
from node.engine.llamacpp.stage import LlamaStage
from node.engine.llamacpp.streams import MOST_STREAMS, Shape
from node.engine.memory import WorkerMemory
from node.errors import EngineError, LoadFailed, ModelError
from node.wire.layer_range import layer_range

LONGEST_UNTOLD = 4096
"""Tokens of a sequence of a model that does not say how many it knows."""


def load_stage(
    spec: StageSpec, library: Library, placement: Placement, memory: WorkerMemory, threads: Callable[[], int]
) -> Generator[None, None, LlamaStage]:
    """Load the range of `spec`; yields after each piece.

    Raises:
        LoadFailed: says what is wrong with which file, or that the family cannot be cut there.
    """
    asked, started_s = layer_range(spec.start, spec.end), time.perf_counter()
    try:
        whole = read_whole(Path(spec.model_folder))
    except ModelError as error:
        raise LoadFailed(asked, str(error)) from error
    if whole is None:
        raise LoadFailed(asked, f"{spec.model_folder} holds no GGUF file, and llama.cpp reads no others")
    try:
        refuse_range(whole, spec.start, spec.end)
    except ValueError as error:
        raise LoadFailed(asked, str(error)) from error
    yield
    if whole.is_whole(spec.start, spec.end):
        model = yield from load_whole(library, whole, placement, asked)
    else:
        part = cut(whole, spec.start, spec.end)
        memory.coming_bytes += part.nbytes
        try:
            model = yield from load_part(library, part, placement, asked)
        finally:
            memory.coming_bytes -= part.nbytes
    try:
        return (yield from _probed(spec, whole, model, library, memory, threads, started_s, placement))
    except (CallFailed, EngineError) as error:
        model.free()
        if isinstance(error, LoadFailed):
            raise
        raise LoadFailed(asked, f"its first step failed: {error}") from error
    except GeneratorExit:  # the load is given up
        model.free()
        raise


def _probed(
    spec: StageSpec,
    whole: WholeModel,
    model: Model,
    library: Library,
    memory: WorkerMemory,
    threads: Callable[[], int],
    started_s: float,
    placement: Placement,
) -> Generator[None, None, LlamaStage]:
    asked, last = layer_range(spec.start, spec.end), spec.end == whole.layers
    if model.width != whole.width:
        raise LoadFailed(asked, f"llama.cpp takes rows of {model.width} for a model of width {whole.width}")
    heads = _heads(whole)

    family = FAMILIES.get(whole.architecture, PLAIN)
    enter = family.rows_enter_at if spec.start else ""

    own_ids = whole.is_whole(spec.start, spec.end)

    def make(shape: Shape, hidden: bool, watched: bool = False) -> Context:
        return Context(
            library,
            model,
            shape,
            heads,
            threads(),
            hidden=hidden,
            enter=enter,
            watched=watched,
            takes_ids=own_ids,
        )

    embedding: Embedding | None = None
    if spec.start == 0 and not own_ids:
        embedding = Embedding(whole, embedding_scale(whole, family.scaled_embedding))
    longest = whole.number("context_length", LONGEST_UNTOLD) or LONGEST_UNTOLD
    stage = LlamaStage(
        spec.start,
        spec.end,
        model,
        embedding,
        lambda shape, watched: make(shape, not last, watched),
        layers=whole.layers,
        enter=enter,
        can_narrow=whole.architecture in FAMILIES,
        vocabulary=whole.vocabulary,
        longest_tokens=longest,
    )
    probed = yield from probe(
        lambda hidden: make(Shape(1, SHORT_STREAM_TOKENS), hidden),
        stage.blank_row(),
        spec.end - spec.start,
        last=last,
    )
    types = types_of(whole, spec.start, spec.end)
    kernels = " ".join(library.text(library.base.ggml_backend_dev_name(card)) for card in placement.cards) or "cpu"
    stage.serve(
        StageInfo(
            weight_bytes=model.nbytes,
            kv_bytes_per_token=probed.kv_bytes_per_token,
            kv_tokens=spec.kv_bytes // probed.kv_bytes_per_token,
            load_s=time.perf_counter() - started_s,
            hidden_size=whole.width,
            dtype=spec.dtype,
            layer_ms=probed.layer_ms,
            head_ms=probed.head_ms,
            max_batch_rows=MAX_BATCH_ROWS,
            max_sequences=MOST_STREAMS,
            can_rewind=model.keeps == "all",
            can_narrow=whole.architecture in FAMILIES,
            backend="llamacpp",
            quantisation=types,
            drift_class=f"llamacpp {library.version} {kernels} {spec.dtype} {types}",
        ),
        memory,
    )
    return stage


def _heads(whole: WholeModel) -> int:
    """Of attention, the most that a layer has."""
    entry = whole.entries.get(f"{whole.architecture}.attention.head_count")
    values = entry.value if entry is not None else 1
    counts = values if isinstance(values, tuple) else (values,)
    return max((count for count in counts if isinstance(count, int)), default=1)
