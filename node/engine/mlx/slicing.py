"""Layers [start, end) of an mlx-lm model: the library's own code over them, with nothing in the others' places.

The list of layers keeps its length, so that each choice that depends on a layer's place is made as in the whole model.
A layer that is not ours gives what it was given; so do the embedding before the first stage's end and the norm before
the last stage. Masks are made from the cache of some layer of each kind: where that one is not ours, another layer's
cache of the same kind stands in for it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from node.errors import LoadFailed
from node.wire.layer_range import layer_range

NEUTRAL = {"hidden_size": 1, "scale_emb": 1.0, "embedding_multiplier": 1.0, "embed_scale": 1.0}
"""What families multiply their embeddings with, some also those that are given; by this one nothing changes."""
PARTS = ("embed_tokens", "layers", "norm")
CHECK_ROWS = 3


class Passing(nn.Module):  # type: ignore[misc]
    """Gives what it was given, in the place of a layer whose plain attributes it has."""

    def __init__(self, like: Any = None) -> None:
        super().__init__()
        for name, value in ({} if like is None else vars(like)).items():
            if not name.startswith("_"):
                setattr(self, name, value)

    def __call__(self, rows: Any, *_: Any, **__: Any) -> Any:
        return rows


class _Given(nn.Module):  # type: ignore[misc]
    """In the body's place within a model: what is left is its head, which may be the embedding's."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.embed_tokens = embedding

    def __call__(self, inputs: Any, *_: Any, **__: Any) -> Any:  # named as theirs: some say the name
        return inputs


class Layout:
    """An mlx-lm model, taken apart."""

    def __init__(self, model: Any, family: str, asked: str) -> None:
        """Raises LoadFailed: it is not laid out as embedding, layers, norm and head."""
        body: Any = getattr(model, "model", None)
        if not all(hasattr(body, part) for part in PARTS):
            raise LoadFailed(asked, f"mlx-lm's {family} is not laid out as embedding, layers, norm and head")
        others = {name.split(".")[0] for name, _ in tree_flatten(body.parameters())}.difference(PARTS)
        if others:
            raise LoadFailed(asked, f"mlx-lm's {family} has {', '.join(sorted(others))} beside embedding, layers, norm")
        self.model, self.body, self.family = model, body, family
        self.layers: list[Any] = list(body.layers)
        self.blank_caches = self.new_caches()
        kinds = {type(cache).__name__ for cache in self.blank_caches}
        if unknown := kinds - {"KVCache", "RotatingKVCache"}:
            raise LoadFailed(asked, f"mlx-lm's {family} keeps {', '.join(sorted(unknown))}, not keys and values alone")
        self.can_rewind = kinds == {"KVCache"}
        self.width = int(body.norm.weight.shape[-1])

    @property
    def head_names(self) -> list[str]:
        """Modules beside the body; none where the head is the embedding."""
        return [name for name, part in self.model.items() if name != "model" and isinstance(part, nn.Module)]

    def new_caches(self) -> list[Any]:
        """An empty cache for each layer of the whole model."""
        from mlx_lm.models.cache import make_prompt_cache

        return list(make_prompt_cache(self.model))

    def hold(self, start: int, end: int) -> None:
        """Let go of all layers but [start, end), of which none may have been computed."""
        self.layers = [layer if start <= index < end else Passing(layer) for index, layer in enumerate(self.layers)]
        self.body.layers = self.layers

    def cut(self, start: int, end: int, asked: str) -> MlxSlice:
        """Layers [start, end) of those that are held.

        Raises:
            LoadFailed: layers of this family cannot be had without the embedding.
        """
        first, last = start == 0, end == len(self.layers)
        body = copy.copy(self.body)
        body.layers = [layer if start <= index < end else Passing(layer) for index, layer in enumerate(self.layers)]
        if not last:
            body.norm = Passing()
        if not first:
            _give_rows_unchanged(body)
        head = None
        if last:
            head = copy.copy(self.model)
            head.model = _Given(self.body.embed_tokens)
        part = MlxSlice(self, body, head, start, end)
        if not first and not part.passes_rows():
            raise LoadFailed(asked, f"mlx-lm's {self.family} changes the rows between embedding and first layer")
        return part


class MlxSlice:
    """Rows in, rows or logits out. No sequences, no room."""

    def __init__(self, layout: Layout, body: Any, head: Any, start: int, end: int) -> None:
        self._body, self._head = body, head
        self.start, self.end = start, end
        self.first, self.last = start == 0, head is not None
        self._width = layout.width
        self._blank = layout.new_caches
        kinds = [_kind(cache) for cache in layout.blank_caches]
        held = {kinds[index]: index for index in range(start, end)}
        self._stand_in = [index if start <= index < end else held.get(kind, -1) for index, kind in enumerate(kinds)]
        """For each layer of the model the one of ours whose cache its place takes; -1 where none of ours is alike."""

    @property
    def vocabulary(self) -> int:
        """Ids that the embedding knows; 0 where there is none."""
        return int(self._body.embed_tokens.weight.shape[0]) if self.first else 0

    def blank_rows(self, sequences: int, dtype: Any) -> Any:
        """One position's input for each: id 0 or a hidden state of zeros."""
        return mx.zeros((sequences, 1), mx.int32) if self.first else mx.zeros((sequences, 1, self._width), dtype)

    def new_caches(self) -> list[Any]:
        """An empty cache for each of our layers."""
        return self._blank()[self.start : self.end]

    def states(self, given: Any, caches: Sequence[Any]) -> Any:
        """Ids (B, T) or hidden states (B, T, hidden_size) to hidden states; the last stage's are normed."""
        ours = {index: cache for index, cache in zip(range(self.start, self.end), caches, strict=True)}
        blank = self._blank() if -1 in self._stand_in else []
        everyone = []
        for index, stand_in in enumerate(self._stand_in):
            if stand_in < 0:
                blank[index].offset = caches[0].offset  # families that ask any cache how far the text goes
            everyone.append(ours[stand_in] if stand_in >= 0 else blank[index])
        # one more than there are layers: some look for a mask where the next full layer would be
        return self._body(given, cache=[*everyone, everyone[-1]])

    def logits(self, states: Any) -> Any:
        """Normed hidden states (B, T, hidden_size) to logits (B, T, vocab_size)."""
        return self._head(states)

    def passes_rows(self) -> bool:
        """Whether nothing happens to rows but what our layers and our norm do."""
        body = copy.copy(self._body)
        body.layers = [Passing(layer) for layer in body.layers]
        body.norm = Passing()
        rows = mx.arange(CHECK_ROWS * self._width).reshape(1, CHECK_ROWS, self._width) / 13.0
        expected = mx.array(rows)  # another one: some multiply in place
        try:
            return bool(mx.array_equal(body(rows, cache=self._blank() + self._blank()), expected))
        except Exception:  # whatever it does with numbers that are no ids
            return False


def _give_rows_unchanged(body: Any) -> None:
    body.embed_tokens = Passing()
    if hasattr(body, "args"):
        body.args = copy.copy(body.args)
    for name, value in NEUTRAL.items():
        for owner in (body, getattr(body, "args", None)):
            if isinstance(getattr(owner, name, None), int | float):
                setattr(owner, name, value)


def _kind(cache: Any) -> tuple[str, int]:
    return type(cache).__name__, int(getattr(cache, "max_size", 0))


def check_range(layers: int, start: int, end: int) -> None:
    """Raises LoadFailed: the model has no such layers."""
    if not 0 <= start < end <= layers:
        raise LoadFailed(layer_range(start, end), f"the model has {layers} layers")
