"""Fills a stage with exactly its tensors: what another live stage holds already is shared, the rest is read.

A stage is loaded whole or not at all: a tensor that is missing, left over, misshapen or never filled is an error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from node.engine.base import StageInfo, StageSpec
from node.engine.batches import MAX_BATCH_ROWS
from node.engine.memory import WorkerMemory
from node.engine.torch.checkpoint import Checkpoint, open_checkpoint
from node.engine.torch.copying import PieceSize, copied
from node.engine.torch.slicing import checkpoint_name, empty_stage, fill_buffers, is_of_stage
from node.engine.torch.tables import longest_with_one_table
from node.errors import EngineError, LoadFailed, ModelError
from node.weights.hub_methods import KEYS
from node.wire.layer_range import layer_range
from node.wire.models import Dtype

if TYPE_CHECKING:
    import torch

    from node.engine.torch.slice import TorchSlice
    from node.engine.torch.stage import TorchStage

UNUSED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
"""Buffers that old checkpoints store and nobody reads any more."""

NAMES_SHOWN = 3
"""Of the tensors that an error is about."""

MAX_SEQUENCES = 256


class SharedTensors:
    """The tensors that live stages hold, by file and name. Holds none of them alive itself."""

    def __init__(self) -> None:
        self._tensors: WeakValueDictionary[tuple[object, ...], torch.Tensor] = WeakValueDictionary()
        self.memory = WorkerMemory(lambda: sum(tensor.nbytes for tensor in self._tensors.values()))
        """For them and the caches of those stages."""
        self.read_count = 0
        """Tensors read from files so far."""

    def __len__(self) -> int:
        """Tensors that a live stage holds."""
        return len(self._tensors)

    def load(
        self, checkpoint: Checkpoint, blanks: dict[str, torch.Tensor], device: torch.device
    ) -> Generator[float | None, None, dict[str, torch.Tensor]]:
        """The tensors of these checkpoint names in the blanks' dtypes; yields after each piece that is read, and after
        each tensor the share that is there."""
        keys = {name: _key(checkpoint.file_of(name), name, blank.dtype, device) for name, blank in blanks.items()}
        tensors = {name: tensor for name, key in keys.items() if (tensor := self._tensors.get(key)) is not None}
        missing = blanks.keys() - tensors.keys()
        coming = {name: blanks[name].nbytes for name in missing}
        self.memory.coming_bytes += sum(coming.values())
        all_bytes = max(1, sum(blank.nbytes for blank in blanks.values()))
        size = PieceSize()
        try:
            for name, stored in checkpoint.read(missing):
                # A copy, even where the dtype is the same already: the original is a view of the file.
                tensor = yield from copied(stored, blanks[name].dtype, device, size)
                tensors[name] = self._tensors[keys[name]] = tensor
                self.memory.coming_bytes -= coming.pop(name)
                self.read_count += 1
                yield 1.0 - sum(coming.values()) / all_bytes
        finally:
            self.memory.coming_bytes -= sum(coming.values())
        return tensors


def _key(file: Path, name: str, dtype: torch.dtype, device: torch.device) -> tuple[object, ...]:
    """Differs as soon as the file is replaced."""
    try:
        status = file.stat()
    except OSError:
        return (file, name, dtype, device)  # reading it says what is wrong
    return (file, status.st_ino, status.st_mtime_ns, status.st_size, name, dtype, device)


def load_stage(
    spec: StageSpec, device: torch.device, shared: SharedTensors, *, packed: bool = False
) -> Generator[float | None, None, TorchStage]:
    """Load the range of `spec`, one tensor, or one piece of a large one, between two yields.

    With `packed`, the rows of a batch are to be computed together, where the family allows it.

    Raises:
        LoadFailed: says what is wrong with which file or tensor, or that memory is short.
    """
    import torch

    asked = layer_range(spec.start, spec.end)
    try:
        return (yield from _load(spec, device, shared, packed))
    except ModelError as error:
        raise LoadFailed(asked, str(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LoadFailed(asked, f"too little memory on {device}; assign fewer layers") from error
    except RuntimeError as error:  # how torch says that the processor's memory is full
        if "allocate memory" in str(error):
            raise LoadFailed(asked, f"too little memory on {device}; assign fewer layers") from error
        raise


def _load(
    spec: StageSpec, device: torch.device, shared: SharedTensors, packed: bool
) -> Generator[float | None, None, TorchStage]:
    import torch

    from node.engine.torch.packing import Packing, check
    from node.engine.torch.pages import PAGE_TOKENS
    from node.engine.torch.probe import probe
    from node.engine.torch.stage import TorchStage

    started = time.perf_counter()
    asked = layer_range(spec.start, spec.end)
    config = read_config(Path(spec.model_folder), asked)
    checkpoint = open_checkpoint(Path(spec.model_folder), config)
    plan = Assembly(config, checkpoint.names(), spec.dtype, device)
    model = plan.empty(spec.start, spec.end)
    sources = plan.sources(model, spec.start)
    last = model.lm_head is not None
    ours = {name for name in checkpoint.names() if is_of_stage(name, spec.start, spec.end, last=last)}
    _refuse_mismatch(asked, set(sources.values()) - checkpoint.names(), ours - set(sources.values()))

    blanks: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    tensors = yield from shared.load(checkpoint, {sources[local]: blank for local, blank in blanks.items()}, device)
    whole = plan.filled(model, spec.start, spec.end, tensors)
    stage = TorchStage(
        whole,
        held=list(tensors.values()),
        cut=lambda start, end: plan.filled(plan.empty(start, end), start, end, tensors),
        most_tokens=longest_with_one_table(config),
    )
    try:
        probed = yield from probe(whole)
        why_apart = (yield from check(whole)) if packed else ""
    except EngineError:
        raise
    except Exception as error:  # whatever the library raises: better now than in the first request
        raise LoadFailed(asked, f"its first step failed: {type(error).__name__}: {error}") from error
    if why_apart:
        print(f"engine worker: {type(model).__name__} runs one sequence after another: {why_apart}", file=sys.stderr)
    together = packed and not why_apart
    if together:
        stage.pack(Packing(device))
    per_token = max(1, sum(probed.layer_kv_bytes))
    stage.serve(
        StageInfo(
            weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            kv_bytes_per_token=per_token,
            kv_tokens=spec.kv_bytes // per_token,
            load_s=time.perf_counter() - started,
            hidden_size=whole.width,
            dtype=spec.dtype,
            layer_ms=probed.layer_ms,
            head_ms=probed.head_ms,
            max_batch_rows=MAX_BATCH_ROWS,
            max_sequences=MAX_SEQUENCES,
            block_tokens=PAGE_TOKENS if together else 1,
            keeps_prefixes=probed.can_rewind and not together,
            can_rewind=together or probed.can_rewind,  # pages keep all keys and values, whatever a window shows
            backend="torch",
            quantisation=spec.dtype,
            drift_class=f"torch {torch.__version__.split('+')[0]} {device.type} {spec.dtype}"
            + (" packed" if together else ""),
        ),
        probed.layer_kv_bytes,
        shared.memory,
    )
    return stage


class Assembly:
    """How slices of one model are put together from tensors that are in memory."""

    def __init__(self, config: Any, names: frozenset[str], dtype: Dtype, device: torch.device) -> None:
        import torch

        self._config, self._names, self._device = config, names, device
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._tied = bool(getattr(config, "tie_word_embeddings", False))

    def empty(self, start: int, end: int) -> Any:
        """The model of layers [start, end) without its tensors. Raises LoadFailed."""
        return empty_stage(self._config, start, end, self._dtype)

    def sources(self, model: Any, start: int) -> dict[str, str]:
        """The checkpoint's name for each tensor of such a model."""
        return {local: checkpoint_name(local, start, self._names, tied=self._tied) for local in model.state_dict()}

    def filled(self, model: Any, start: int, end: int, tensors: dict[str, torch.Tensor]) -> TorchSlice:
        """Such a model with its tensors, which are given by the checkpoint's names and are not copied.

        Raises:
            LoadFailed: a tensor of another shape, or none for a parameter.
        """
        from node.engine.torch.slice import TorchSlice

        asked = layer_range(start, end)
        sources = self.sources(model, start)
        blanks: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        for local, blank in blanks.items():
            tensor = tensors[sources[local]]
            if tensor.shape != blank.shape:
                expected, found = list(blank.shape), list(tensor.shape)
                raise LoadFailed(asked, f"tensor {sources[local]} has the shape {found}, {expected} expected")
            _assign(model, local, tensor)
        fill_buffers(model, self._config, self._device)
        left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
        if left:
            raise LoadFailed(asked, f"no values for {_some(left)}")
        return TorchSlice(model, start, end, self._device, self._dtype)


def read_config(folder: Path, asked: str) -> Any:
    """The model's config, of the library's own classes: code that lies in the folder is never run.

    Raises:
        LoadFailed: no config, or one that the library does not know.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not (folder / "config.json").exists():
        raise LoadFailed(asked, f"{folder}: holds no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise LoadFailed(asked, f"{folder / 'config.json'}: {error}") from error
    for key in KEYS:  # the tensors are read as what they stand for, see `checkpoint`
        if getattr(config, key, None) is not None:
            delattr(config, key)
    return config


def _refuse_mismatch(asked: str, missing: set[str], left_over: set[str]) -> None:
    """The checkpoint's names for the stage must be exactly those of the model in memory."""
    left_over = {name for name in left_over if not name.endswith(UNUSED_SUFFIXES)}
    if not missing and not left_over:
        return
    if any(".experts." in name for name in missing):
        hint = "its experts are stored one by one, where this library's model has them joined"
    else:
        hint = "the files and config.json do not belong together"
    found = f"; without use: {_some(sorted(left_over))}" if left_over else ""
    raise LoadFailed(asked, f"missing: {_some(sorted(missing)) or 'nothing'}{found}; {hint}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _assign(model: Any, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor into its module without copying it."""
    import torch

    path, _, leaf = name.rpartition(".")
    module: torch.nn.Module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor
