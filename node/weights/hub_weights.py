"""The weights of a folder in transformers' form: config.json and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.errors import DamagedModel, UnsupportedModel
from node.weights.base import Part
from node.weights.blocks import Blocks, Floats, Matrix, floats, rows_of, stacked
from node.weights.families import BARE, FAMILIES, NORM_FROM_ONE, OUTER, ROTARY_INTERLEAVED, Place
from node.weights.hub_files import HubFiles
from node.weights.hub_methods import method_of
from node.weights.hub_quantised import quantised_tensor, read_quantised
from node.weights.sizes import HeadSizes

PREFIXES = ("model.", "model.language_model.", "language_model.model.", "")
"""Of a checkpoint's language part, before `layers.0.`."""
HEADS = ("lm_head", "language_model.lm_head", "model.lm_head")
EXPERTS_LIMIT = 4096
SIZE_LIMIT = 1_000_000_000


class HubWeights:
    """A `base.Weights`.

    Raises:
        DamagedModel: config.json, an index or a header cannot be read.
        UnsupportedModel: a family that is not known.
    """

    rotary_interleaved: bool

    def __init__(self, folder: Path) -> None:
        self.store = HubFiles(folder)
        self._config_path = folder / "config.json"
        self._config = _read_config(self._config_path)
        family = self._config.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise UnsupportedModel(str(folder), f"the family {str(family)[:40]!r}", ", ".join(FAMILIES))
        self.family = family
        self._table = FAMILIES[family]
        self._method = method_of(self._config, str(self._config_path))
        self.layers = self._size("num_hidden_layers")
        self.rotary_interleaved = family in ROTARY_INTERLEAVED
        self._prefix = next((p for p in PREFIXES if any(self._bases(f"{p}{OUTER['token_embd']}"))), PREFIXES[0])
        self._head = next((name for name in HEADS if any(self._bases(name))), None)
        self.tied_head = self._head is None
        self.files = tuple(sorted(set(self.store.file_of.values())))

    def has(self, layer: int | None, role: str, part: Part = "weight") -> bool:
        """See `base.Weights`."""
        return self._find(layer, role, part) is not None

    def matrix(self, layer: int | None, role: str, part: Part = "weight") -> Matrix:
        """See `base.Weights`."""
        place, base = self._named(layer, role, part)
        if "{}" in base:
            return stacked([self._read(one, part, role) for one in self._each(base, part)])
        whole = self._read(base, part, role)
        if place.columns_first and part == "weight" and not self._is_quantised(base, part):
            whole = np.swapaxes(floats(whole), -1, -2)
        if not place.rows:
            return whole
        return self._rows(whole, place, base, part)

    def vector(self, layer: int | None, role: str, part: Part = "weight") -> Floats:
        """See `base.Weights`."""
        values = floats(self.matrix(layer, role, part)).reshape(-1)
        return values + np.float32(1) if self.family in NORM_FROM_ONE and role.endswith("norm") else values

    def stored(self, layer: int | None, role: str) -> str:
        """See `base.Weights`."""
        _, base = self._named(layer, role, "weight")
        if "{}" in base:
            base = next(iter(self._each(base, "weight")))
        if self._method and self._is_quantised(base, "weight"):
            return self._method.label
        return self.store.place(self._tensor(base, "weight", role)).dtype

    def file_of(self, layer: int | None, role: str, part: Part = "weight") -> Path:
        """See `base.Weights`."""
        return self.store.file_of[self._tensor(self._named(layer, role, part)[1].format(0), part, role)]

    def embedding_rows(self, ids: Sequence[int] | NDArray[np.integer]) -> Floats:
        """See `base.Weights`."""
        base = self._named(None, "token_embd", "weight")[1]
        name = self._tensor(base, "weight", "token_embd")
        wanted = np.asarray(ids, dtype=np.int64)
        if self._is_quantised(base, "weight"):
            table = floats(self._read(base, "weight", "token_embd"))
            if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < table.shape[0]:
                raise ValueError(f"the vocabulary has {table.shape[0]} ids")
            return table[wanted]
        rows = self.store.place(name).shape[0]
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < rows:
            raise ValueError(f"the vocabulary has {rows} ids")
        return self.store.rows(name, wanted)

    def layer_bytes(self, layer: int) -> int:
        """See `base.Weights`."""
        prefix = f"{self._prefix}layers.{layer}."
        return sum(self.store.nbytes(name) for name in self.store.file_of if name.startswith(prefix))

    def outer_bytes(self, role: str) -> int:
        """See `base.Weights`."""
        base = self._head if role == "output" else f"{self._prefix}{OUTER.get(role, role)}"
        return sum(self.store.nbytes(name) for name in self.store.file_of if base and name.startswith(f"{base}."))

    def _named(self, layer: int | None, role: str, part: Part) -> tuple[Place, str]:
        found = self._find(layer, role, part)
        if found is None:
            raise KeyError(f"{role}.{part} of {'the model' if layer is None else f'layer {layer}'}")
        return found

    def _find(self, layer: int | None, role: str, part: Part) -> tuple[Place, str] | None:
        """The place of a role, and its whole name without the part."""
        if layer is None:
            if role == "output":
                base = self._head or f"{self._prefix}{OUTER['token_embd']}"
            elif role in OUTER:
                base = f"{self._prefix}{OUTER[role]}"
            else:
                return None
            return (Place(base), base) if self._has(base, part, role) else None
        for place in self._table.get(role, ()):
            base = f"{self._prefix}layers.{layer}.{place.name}"
            if self._has(base.format(0), part, role):
                return place, base
        return None

    def _has(self, base: str, part: Part, role: str) -> bool:
        return self._tensor(base, part, role) in self.store

    def _tensor(self, base: str, part: Part, role: str) -> str:
        """The name of a tensor that is stored as it is; where there is none, the one that it would have."""
        if role in BARE and base in self.store:
            return base
        if part == "weight" and self._method and (name := quantised_tensor(self.store, base, self._method)):
            return name
        names = (f"{base}.weight", base) if part == "weight" else (f"{base}.bias", f"{base}_bias")
        return next((name for name in names if name in self.store), names[0])

    def _bases(self, base: str) -> list[str]:
        names = (self._tensor(base, "weight", ""), base)
        return [name for name in names if name in self.store]

    def _is_quantised(self, base: str, part: Part) -> bool:
        return (
            part == "weight"
            and self._method is not None
            and quantised_tensor(self.store, base, self._method) is not None
        )

    def _each(self, base: str, part: Part) -> list[str]:
        """The bases of all experts; those that lie beside the first must be without a gap."""
        found = []
        for expert in range(EXPERTS_LIMIT):
            one = base.format(expert)
            if not self._has(one, part, ""):
                break
            found.append(one)
        told = self._config.get(
            "num_experts", self._config.get("n_routed_experts", self._config.get("num_local_experts"))
        )
        if told != len(found):
            raise DamagedModel(str(self._config_path), f"says {str(told)[:20]} experts, {base} has {len(found)}")
        return found

    def _read(self, base: str, part: Part, role: str) -> Matrix:
        if self._method and self._is_quantised(base, part):
            return read_quantised(self.store, base, self._method)
        return self.store.floats(self._tensor(base, part, role))

    def _rows(self, whole: Matrix, place: Place, base: str, part: Part) -> Matrix:
        """The rows of one role out of a joined tensor, or the entries of its bias."""
        if place.columns_first:  # gate and up take turns
            first = 0 if place.rows == "gate" else 1
            if isinstance(whole, Blocks):
                return whole.rows(first, whole.shape[-2], 2)
            values = floats(whole)
            return values[..., first::2, :] if part == "weight" else values[..., first::2]
        values_of_rows = whole if part == "weight" else floats(whole)[..., None]
        count = values_of_rows.shape[-2]
        span = self._head_sizes().span(place.rows, count)
        if span is None:
            raise DamagedModel(str(self._config_path), f"{base} has {count} rows, not those of all that it joins")
        cut = rows_of(values_of_rows, *span)
        return cut if part == "weight" else floats(cut)[..., 0]

    def _head_sizes(self) -> HeadSizes:
        heads = self._size("num_attention_heads")
        keys = self._size("num_key_value_heads", heads)
        width = self._size("head_dim", self._size("hidden_size") // heads)
        return HeadSizes(heads * width, keys * width, keys * width)

    def _size(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= SIZE_LIMIT:
            raise DamagedModel(
                str(self._config_path), f'the key "{key}" is {str(value)[:40]!r}, not a number from 1 on'
            )
        return value


def is_stored_otherwise(folder: Path) -> bool:
    """Whether a folder's safetensors are not the tensors that transformers holds in memory: quantised, or experts one
    by one. Only of families that are known here.

    Raises:
        DamagedModel, UnsupportedModel: as `HubWeights`.
    """
    config = _read_config(folder / "config.json")
    quantised = method_of(config, str(folder / "config.json")) is not None
    if config.get("model_type") not in FAMILIES:
        if quantised:
            raise UnsupportedModel(str(folder), "quantised weights of a family that is not known", ", ".join(FAMILIES))
        return False
    return quantised or ".experts.0." in " ".join(HubFiles(folder).file_of)


def _read_config(path: Path) -> Mapping[str, object]:
    """A multimodal model's language part counts, where there is one."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedModel(str(path), f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedModel(str(path), f"is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DamagedModel(str(path), "is not a JSON object")
    text = values.get("text_config")
    return {**values, **text} if isinstance(text, dict) else values
