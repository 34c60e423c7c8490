"""Refuses model folders that no engine of ours can load, before gigabytes are copied or fetched."""

from __future__ import annotations

from pathlib import Path

from node.errors import DamagedModel, UnsupportedModel
from node.models.facts import ModelConfig
from node.weights.families import FAMILIES
from node.weights.hub_methods import method_of

WANTED = "models whose weights are stored as bfloat16, float16 or float32, or a GGUF file of it"


def refuse_what_cannot_run(folder: Path) -> None:
    """Look at the config.json of a Hugging Face folder.

    Keys that belong to a model's family are transformers' to honour, which knows them all; what it would ignore or only
    refuse at load is refused here.

    Raises:
        DamagedModel: config.json cannot be read.
        UnsupportedModel: its weights are quantised in a way that cannot be read, it needs code of its own, or it is no
            language model.
    """
    config = ModelConfig(folder)
    if method_of(config.values, str(folder)) and config.values.get("model_type") not in FAMILIES:
        family = str(config.values.get("model_type"))[:40]
        raise UnsupportedModel(str(folder), f"quantised weights of the family {family}", ", ".join(FAMILIES))
    if not isinstance(config.values.get("model_type"), str):
        raise DamagedModel(str(config.path), 'the key "model_type" is missing')
    if config.values.get("is_encoder_decoder") is True:
        raise UnsupportedModel(str(folder), "a model of encoder and decoder", "models that continue a text")


def refuse_adapter(folder: Path) -> None:
    """Look at a folder without config.json.

    Raises:
        UnsupportedModel: it is an adapter.
    """
    if (folder / "adapter_config.json").is_file():
        what = "a LoRA adapter, which changes another model and is none itself (merge it into its model first),"
        raise UnsupportedModel(str(folder), what, WANTED)
