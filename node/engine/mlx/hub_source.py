"""A range's tensors from safetensors files, by mlx-lm's names. Nothing is read before it is computed with.

A family's own `sanitize` makes the names and shapes of mlx-lm's modules from those of a checkpoint, for all layers at
once. The tensors of layers that are not ours, whose files need not be here, are stood in for by those of a layer that
is: what comes of them is thrown away, and since arrays are values to be computed, nothing ever is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx

from node.engine.mlx.slicing import Layout
from node.errors import LoadFailed
from node.weights.hub_files import HubFiles

LAYER_NAME = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
UNREADABLE = ("gptq", "awq", "bitnet", "fp8", "modelopt", "compressed-tensors", "bitsandbytes")
"""Quantised forms of others, which would have to be translated for the whole model at once, or whose scales our names
do not tell."""


class HubSource:
    """Tensors by the names of mlx-lm's modules.

    Raises:
        DamagedModel, UnsupportedModel: as `HubFiles`.
        LoadFailed: a form of quantisation that is not read, or names that the family's module does not know.
    """

    def __init__(self, folder: Path, config: dict[str, Any], layout: Layout, start: int, end: int, asked: str) -> None:
        method = config.get("quantization_config")
        method = method.get("quant_method", "") if isinstance(method, dict) else ""
        if "quantization" not in config and method in UNREADABLE:
            raise LoadFailed(asked, f"{folder}: weights quantised by {method}, which the MLX backend does not read")
        self._files = HubFiles(folder)
        self._loaded: dict[Path, dict[str, mx.array]] = {}
        self._arrays = self._sanitised(layout, start, end, asked)
        self.default_quantisation: dict[str, Any] = _object(config.get("quantization"))

    def names(self, prefix: str) -> set[str]:
        """Of the tensors below a module."""
        return {name for name in self._arrays if name.startswith(prefix)}

    def has(self, name: str) -> bool:
        return name in self._arrays

    def take(self, prefix: str) -> dict[str, mx.array]:
        """The tensors below a module, which this source lets go of."""
        return {name: self._arrays.pop(name) for name in self.names(prefix)}

    def grid(self, path: str, module: Any) -> dict[str, Any] | None:
        """How the module at this path is quantised; None where it is not."""
        if not hasattr(module, "to_quantized") or f"{path}.scales" not in self._arrays:
            return None
        if isinstance(own := self.default_quantisation.get(path), dict):
            return dict(own)
        weight, scales = self._arrays[f"{path}.weight"], self._arrays[f"{path}.scales"]
        columns = int(module.weight.shape[-1])
        group, bits = columns // int(scales.shape[-1]), int(weight.shape[-1]) * 32 // columns
        if scales.dtype != mx.uint8:
            return {"group_size": group, "bits": bits, "mode": "affine"}
        modes = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}
        if (mode := modes.get((bits, group))) is None:
            raise LoadFailed(path, f"{bits} bits with one scale for {group} numbers is no grid that MLX knows")
        return {"group_size": group, "bits": bits, "mode": mode}

    def identity(self, prefix: str) -> tuple[object, ...]:
        """Differs as soon as a file that a module comes from is replaced."""
        own = {path for name, path in self._files.file_of.items() if name.startswith(prefix)}
        return tuple((str(path), *_status(path)) for path in sorted(own or set(self._files.file_of.values())))

    def _sanitised(self, layout: Layout, start: int, end: int, asked: str) -> dict[str, mx.array]:
        given: dict[str, mx.array] = {}
        foreign: list[tuple[str, str]] = []
        """Names in other layers, with what follows the layer's number."""
        by_suffix: dict[str, str] = {}
        for name in self._files.file_of:
            match = LAYER_NAME.match(name)
            if match and start <= int(match[1]) < end:
                given[name] = self._array(name)
                by_suffix[match[2]] = name
            elif match:
                foreign.append((name, match[2]))
            elif self._files.file_of[name].exists():
                given[name] = self._array(name)
            else:
                foreign.append((name, name))
        for name, suffix in foreign:
            given[name] = given[by_suffix[suffix]] if suffix in by_suffix else mx.zeros((1, 1))
        if not hasattr(layout.model, "sanitize"):
            return given
        try:
            return dict(layout.model.sanitize(given))
        except Exception as error:  # whatever the library makes of a checkpoint of another form
            what = f"{type(error).__name__}: {error}"
            raise LoadFailed(
                asked, f"mlx-lm's {layout.family} cannot use the names of this checkpoint: {what}"
            ) from error

    def _array(self, name: str) -> mx.array:
        self._files.place(name)  # checks the header before the library parses it
        path = self._files.file_of[name]
        if path not in self._loaded:
            self._loaded[path] = mx.load(str(path))
        return self._loaded[path][name]


def _object(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _status(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size
