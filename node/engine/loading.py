"""Fills a stage with exactly its tensors: what another live stage holds already is shared, the rest is read.

A stage is loaded whole or not at all: a tensor that is missing, left over, misshapen or never filled is an error.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from node.engine.base import StageInfo, StageSpec
from node.engine.checkpoint import Checkpoint
from node.engine.memory import WorkerMemory
from node.engine.slicing import checkpoint_name, empty_stage, fill_buffers, is_of_stage, layers_text
from node.errors import EngineError, LoadFailed, ModelError

if TYPE_CHECKING:
    import torch

    from node.engine.torch_stage import TorchStage

UNUSED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
"""Buffers that old checkpoints store and nobody reads any more."""

NAMES_SHOWN = 3
"""Of the tensors that an error is about."""


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
    ) -> Generator[None, None, dict[str, torch.Tensor]]:
        """The tensors of these checkpoint names in the blanks' dtypes; yields after each one that is read."""
        keys = {name: _key(checkpoint.file_of(name), name, blank.dtype, device) for name, blank in blanks.items()}
        tensors = {name: tensor for name, key in keys.items() if (tensor := self._tensors.get(key)) is not None}
        missing = blanks.keys() - tensors.keys()
        coming = {name: blanks[name].nbytes for name in missing}
        self.memory.coming_bytes += sum(coming.values())
        try:
            for name, stored in checkpoint.read(missing):
                # A copy, even where the dtype is the same already: the original is a view of the file.
                tensors[name] = self._tensors[keys[name]] = stored.to(device, blanks[name].dtype, copy=True)
                self.memory.coming_bytes -= coming.pop(name)
                self.read_count += 1
                yield
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


def load_stage(spec: StageSpec, device: torch.device, shared: SharedTensors) -> Generator[None, None, TorchStage]:
    """Load the range of `spec`, one tensor between two yields.

    Raises:
        LoadFailed: says what is wrong with which file or tensor, or that memory is short.
    """
    import torch

    asked = layers_text(spec.start, spec.end)
    try:
        return (yield from _load(spec, device, shared))
    except ModelError as error:
        raise LoadFailed(asked, str(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LoadFailed(asked, f"too little memory on {device}; assign fewer layers") from error
    except RuntimeError as error:  # how torch says that the processor's memory is full
        if "allocate memory" in str(error):
            raise LoadFailed(asked, f"too little memory on {device}; assign fewer layers") from error
        raise


def _load(spec: StageSpec, device: torch.device, shared: SharedTensors) -> Generator[None, None, TorchStage]:
    import torch

    from node.engine.probe import probe
    from node.engine.torch_stage import TorchStage

    started = time.perf_counter()
    asked = layers_text(spec.start, spec.end)
    config = read_config(Path(spec.model_folder), asked)
    checkpoint = Checkpoint(Path(spec.model_folder))
    model = empty_stage(config, spec.start, spec.end, getattr(torch, spec.dtype))

    blanks: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    tied, names = bool(getattr(config, "tie_word_embeddings", False)), checkpoint.names()
    sources = {local: checkpoint_name(local, spec.start, names, tied=tied) for local in blanks}
    last = model.lm_head is not None
    ours = {name for name in names if is_of_stage(name, spec.start, spec.end, last=last)}
    _refuse_mismatch(asked, set(sources.values()) - names, ours - set(sources.values()))

    tensors = yield from shared.load(checkpoint, {sources[local]: blank for local, blank in blanks.items()}, device)
    for local, blank in blanks.items():
        tensor = tensors[sources[local]]
        if tensor.shape != blank.shape:
            expected, found = list(blank.shape), list(tensor.shape)
            raise LoadFailed(asked, f"tensor {sources[local]} has the shape {found}, {expected} expected")
        _assign(model, local, tensor)
    fill_buffers(model, config, device)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise LoadFailed(asked, f"no values for {_some(left)}")

    stage = TorchStage(model, spec, device, held=list(tensors.values()))
    try:
        probed = yield from probe(stage)
    except EngineError:
        raise
    except Exception as error:  # whatever the library raises: better now than in the first request
        raise LoadFailed(asked, f"its first step failed: {type(error).__name__}: {error}") from error
    stage.open(
        StageInfo(
            weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            kv_bytes_per_token=probed.kv_bytes_per_token,
            kv_tokens=spec.kv_bytes // probed.kv_bytes_per_token,
            load_s=time.perf_counter() - started,
            hidden_size=int(model.config.hidden_size),
            dtype=spec.dtype,
            layer_ms=probed.layer_ms,
            head_ms=probed.head_ms,
        ),
        shared.memory,
    )
    return stage


def read_config(folder: Path, asked: str) -> Any:
    """The model's config, of the library's own classes: code that lies in the folder is never run.

    Raises:
        LoadFailed: no config, or one that the library does not know, or quantised weights.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").exists():
        raise LoadFailed(asked, f"{folder}: holds no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadFailed(asked, f"{folder / 'config.json'}: {error}") from error
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else type(quantised).__name__
        raise LoadFailed(asked, f"{folder}: its weights are quantised ({method}); use a model in bfloat16 or float32")
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
