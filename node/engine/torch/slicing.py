"""Layers [start, end) of a transformers model, as a model of their own, without weights yet.

The whole architecture is built on the meta device, where it takes no memory, so that every choice that depends on a
layer's place (sliding or full attention, dense or expert layers) is made as in the whole model. Then the other layers
are dropped and the kept ones renumbered, because a stage's KV cache counts its own layers from 0. Rotary tables,
masks, sliding windows and norms stay the library's own.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from node.errors import LoadFailed
from node.wire.layer_range import layer_range

if TYPE_CHECKING:
    import torch

PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "block_types")
"""Entries of a config with one item per layer."""

LAYER_NAME = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def empty_stage(config: Any, start: int, end: int, dtype: torch.dtype) -> Any:
    """The stage's model, with every parameter on the meta device, ready for evaluation.

    The embedding is there for the first stage alone, final norm and head for the last alone.

    Raises:
        LoadFailed: no such layers, or an architecture that is not laid out as embedding, layers, norm, head.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    asked = layer_range(start, end)
    try:
        with torch.device("meta"), no_init_weights():  # first values, which nobody keeps, take most of the time
            model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    except (ValueError, KeyError, ImportError) as error:
        raise LoadFailed(asked, f"transformers cannot build the model: {error}") from error
    body: Any = getattr(model, "model", None)
    if not all(hasattr(body, part) for part in ("embed_tokens", "layers", "norm")) or not hasattr(model, "lm_head"):
        raise LoadFailed(asked, f"{type(model).__name__} is not laid out as embedding, layers, norm and head")
    total = len(body.layers)
    if not 0 <= start < end <= total:
        raise LoadFailed(asked, f"the model has {total} layers")

    body.layers = torch.nn.ModuleList(list(body.layers)[start:end])
    for module in body.layers.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx -= start
    for part in {id(part): part for part in (model.config, body.config)}.values():
        _cut_config(part, start, end)
    if start > 0:
        body.embed_tokens = None
    if end < total:
        body.norm, model.lm_head = torch.nn.Identity(), None
    return model.eval().requires_grad_(False)


def _cut_config(config: Any, start: int, end: int) -> None:
    """Make a config, which the stage's KV cache is made from, that of a model with these layers alone."""
    total = config.num_hidden_layers
    for name in PER_LAYER_LISTS:
        entries = getattr(config, name, None)
        if isinstance(entries, list) and len(entries) == total:
            setattr(config, name, entries[start:end])
    config.num_hidden_layers = end - start


def checkpoint_name(local: str, start: int, names: frozenset[str], *, tied: bool) -> str:
    """The whole model's name for a stage's tensor: layer 0 of the stage is layer `start` of the model.

    A head that is tied reads the embedding's tensor, unless the checkpoint has one for the head, as transformers does.
    """
    if match := LAYER_NAME.match(local):
        return f"model.layers.{int(match[1]) + start}.{match[2]}"
    if local == HEAD and tied and HEAD not in names:
        return EMBEDDING
    return local


def is_of_stage(name: str, start: int, end: int, *, last: bool) -> bool:
    """Whether a checkpoint's tensor belongs to a stage, so that leaving it out would load the stage by half."""
    if match := LAYER_NAME.match(name):
        return start <= int(match[1]) < end
    if name == EMBEDDING:
        return start == 0
    if name in (HEAD, NORM):
        return last
    return True


def fill_buffers(model: Any, config: Any, device: torch.device) -> None:
    """Compute the buffers that no checkpoint stores. `config` is the whole model's.

    The whole model's, since a stage of sliding layers alone would lack the tables that its module expects.
    """
    import torch

    for module in model.modules():
        missing = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not missing:
            continue
        if "Rotary" in type(module).__name__:
            fresh = type(module)(copy.deepcopy(config)).eval().to(device)
            module.__dict__.update(fresh.__dict__)  # tables, scaling factors and all that depends on them
        elif missing == ["embed_scale"]:
            module._buffers["embed_scale"] = torch.tensor(module.scalar_embed_scale, device=device)
