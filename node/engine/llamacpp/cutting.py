"""The GGUF file of layers [start, end) alone, out of that of the whole model: which entries, which tensors.

Blocks are counted from 0, and all that the metadata says of single layers goes with them. A part that is not the last
has a dummy of an embedding, since the library wants one, and so a head that costs nothing. The embedding is in no part:
its rows are looked up in the file by us.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node.engine.llamacpp.families import FAMILIES, Family
from node.engine.llamacpp.gguf_writing import F32, STRING, U32, Entry, Tensor
from node.errors import LoadFailed
from node.wire.layer_range import layer_range

DUMMY_TOKENS = 32
"""Rows of the embedding that is never used, where there may be so few."""
F32_KIND, F16_KIND, Q4_0_KIND = 0, 1, 2
"""ggml's numbers of types."""
WIDEST_WINDOW = 2**30

BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")
EMBEDDING, HEAD, HEAD_BIAS, NORM = "token_embd.weight", "output.weight", "output.bias", "output_norm.weight"

NOT_PER_LAYER = ("rope.dimension_sections",)
"""Arrays that may happen to be as long as the model has layers."""
DROPPED = ("general.", "tokenizer.", "split.", "quantize.")
"""What computes nothing; the tokenizer is the node's."""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """What a GGUF model's header says, in one file or several."""

    files: tuple[Path, ...]
    entries: Mapping[str, Entry]
    tensors: Mapping[str, Tensor]
    """With their sources."""

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def layers(self) -> int:
        """That a token goes through; those that predict further tokens are not among them."""
        return self.number("block_count") - self.number("nextn_predict_layers", 0)

    @property
    def width(self) -> int:
        """Of a hidden row."""
        return self.number("embedding_length")

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.tensors[EMBEDDING].shape[0] if EMBEDDING in self.tensors else 0

    def text(self, key: str) -> str:
        """A string; empty where there is none."""
        value = self.entries[key].value if key in self.entries else ""
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of the architecture's entries.

        Raises:
            ValueError: there is none, or it is none.
        """
        full = f"{self.architecture}.{key}"
        value = self.entries[full].value if full in self.entries else default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            what = "no whole number" if full in self.entries else "missing"
            raise ValueError(f'the metadata entry "{full}" is {what}')
        return value

    def is_whole(self, start: int, end: int) -> bool:
        """Whether a range is all of it: the file is then used as it is."""
        return start == 0 and end == self.layers


@dataclass(frozen=True, slots=True)
class Part:
    """The file of some of its layers."""

    entries: tuple[Entry, ...]
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def refuse_range(whole: WholeModel, start: int, end: int) -> None:
    """Look whether a range can be held.

    Raises:
        LoadFailed: there are no such layers, or the family cannot be cut there.
    """
    asked, architecture, layers = layer_range(start, end), whole.architecture, whole.layers
    if not 0 <= start < end <= layers:
        raise LoadFailed(asked, f"the model has {layers} layers")
    if whole.is_whole(start, end):
        return
    if (family := FAMILIES.get(architecture)) is None:
        raise LoadFailed(asked, f"llama.cpp's {architecture} models can only be held whole here; assign all layers")
    for count in (layers, end - start):
        if count in family.known_by_layers:
            raise LoadFailed(
                asked,
                f"llama.cpp computes {architecture} models of {count} layers otherwise than others; "
                + ("this one can only be held whole" if count == layers else "assign one layer more or less"),
            )
    windows = windows_of(whole, family)[start:end]
    if windows and not any(windows) and family.all_full == "refuse":
        raise LoadFailed(
            asked, f"llama.cpp runs no part of a {architecture} model without a window; assign one layer more"
        )
    step = max(1, whole.number(family.step_key, family.step)) if family.step_key else family.step
    if family.least and end - start < step:
        raise LoadFailed(asked, f"a part of a {architecture} model has at least {step} layers")
    if start % step:
        raise LoadFailed(asked, f"a part of a {architecture} model must begin at a multiple of {step} layers")


def cut(whole: WholeModel, start: int, end: int) -> Part:
    """The file of layers [start, end), which `refuse_range` lets pass."""
    family, last = FAMILIES[whole.architecture], end == whole.layers
    return Part(tuple(_entries(whole, family, start, end, last)), tuple(_tensors(whole, family, start, end, last)))


def _entries(whole: WholeModel, family: Family, start: int, end: int, last: bool) -> list[Entry]:
    prefix = f"{whole.architecture}."
    all_layers = whole.number("block_count")
    found: dict[str, Entry] = {"general.architecture": whole.entries["general.architecture"]}
    for key, entry in whole.entries.items():
        if key.startswith(DROPPED):
            continue
        per_layer = key.startswith(prefix) and key.removeprefix(prefix) not in NOT_PER_LAYER
        if per_layer and isinstance(entry.value, tuple) and len(entry.value) in (all_layers, whole.layers):
            entry = Entry(key, entry.kind, entry.value[start:end])
        found[key] = entry

    def put(key: str, kind: int, value: int | float | str | tuple[int, ...]) -> None:
        found[prefix + key] = Entry(prefix + key, kind, value)

    put("block_count", U32, end - start)
    put("vocab_size", U32, whole.vocabulary if last else DUMMY_TOKENS)
    found.pop(f"{prefix}nextn_predict_layers", None)
    if f"{prefix}leading_dense_block_count" in found:
        put("leading_dense_block_count", U32, max(0, whole.number("leading_dense_block_count") - start))
    if windows := windows_of(whole, family)[start:end]:
        put("attention.sliding_window_pattern", U32, windows)
        if not any(windows) and family.all_full == "drop":
            found.pop(f"{prefix}attention.sliding_window", None)
        elif not any(windows):
            put("attention.sliding_window", U32, WIDEST_WINDOW)
            put("attention.sliding_window_pattern", U32, (1,) * len(windows))
    if family.rows_need_sections and f"{prefix}rope.dimension_sections" not in found:
        quarter = whole.number("rope.dimension_count", 4) // 4
        put("rope.dimension_sections", U32, (quarter, quarter, 0, 0))
    if start:
        put("embedding_scale", F32, 1.0)
    if whole.architecture == "deepseek2":
        _say_what_deepseek2_guesses(whole, found)
    found["tokenizer.ggml.model"] = Entry("tokenizer.ggml.model", STRING, "none")
    return list(found.values())


def windows_of(whole: WholeModel, family: Family) -> tuple[int, ...]:
    """1 for each layer that sees a window, 0 for one that sees everything; empty where the file or the family has no
    such pattern."""
    entry = whole.entries.get(f"{whole.architecture}.attention.sliding_window_pattern")
    if entry is not None and isinstance(entry.value, tuple):
        return tuple(int(bool(item)) for item in entry.value)
    period = family.window_period if entry is None else whole.number("attention.sliding_window_pattern")
    if not family.window_period and entry is None:
        return ()
    full = 0 if family.full_first else period - 1
    return tuple(int(period == 0 or layer % period != full) for layer in range(whole.layers))


def _say_what_deepseek2_guesses(whole: WholeModel, found: dict[str, Entry]) -> None:
    """The library tells its small models by their number of layers, which a part has not."""
    for key, value in (("attention.q_lora_rank", 0), ("expert_gating_func", 2 if _is_glm_flash(whole) else 1)):
        found.setdefault(f"deepseek2.{key}", Entry(f"deepseek2.{key}", U32, value))


def _is_glm_flash(whole: WholeModel) -> bool:
    return whole.layers in (47, 48) and whole.vocabulary == 154880


def _tensors(whole: WholeModel, family: Family, start: int, end: int, last: bool) -> list[Tensor]:
    found: list[Tensor] = []
    head = whole.tensors.get(HEAD, whole.tensors.get(EMBEDDING))
    for name, tensor in whole.tensors.items():
        if match := BLOCK.match(name):
            if start <= int(match[1]) < end:
                found.append(_named(tensor, f"blk.{int(match[1]) - start}.{match[2]}"))
        elif name in (HEAD, HEAD_BIAS):
            if name == HEAD_BIAS:
                found.append(tensor if last else Tensor(name, F32_KIND, (DUMMY_TOKENS,), DUMMY_TOKENS * 4, None))
        elif name != EMBEDDING:  # the norm, tables of rotary frequencies
            found.append(tensor)
    rows = whole.vocabulary if last else DUMMY_TOKENS
    if last and head is not None and not family.own_head:
        # what the library calls the embedding serves as the head, so that neither is there twice
        return [*found, _named(head, EMBEDDING)]
    if family.own_head:
        found.append(_named(head, HEAD) if last and head is not None else _dummy(HEAD, rows, whole.width))
    return [*found, _dummy(EMBEDDING, rows, whole.width)]


def _dummy(name: str, rows: int, width: int) -> Tensor:
    """An embedding or a head that is never looked at, as small as can be."""
    kind, nbytes = (Q4_0_KIND, width // 32 * 18) if width % 32 == 0 else (F16_KIND, width * 2)
    return Tensor(name, kind, (rows, width), rows * nbytes, None)


def _named(tensor: Tensor, name: str) -> Tensor:
    return Tensor(name, tensor.kind, tensor.shape, tensor.nbytes, tensor.source)
