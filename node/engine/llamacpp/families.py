"""Which families of llama.cpp's can be held in parts, and what of their metadata depends on a layer's place.

A family is here when its parts were found to give the whole model's bits. Others are held whole, where all of a
model's layers are on one node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """What must be known to cut a model."""

    scaled_embedding: bool = False
    """Its graph multiplies a token's embedding with the square root of its width, and rows that are given not."""
    rows_enter_at: str = ""
    """The node of its graph that rows of layers before this part are put into, where it would scale them as it does an
    embedding's; empty: they are given as embeddings."""
    window_period: int = 0
    """Of so many layers one sees everything, the last or with `full_first` the first, and the others a window; where
    the file does not say so by itself. 0: there are no windows."""
    full_first: bool = False
    all_full: Literal["refuse", "drop", "widen"] = "refuse"
    """What to do with a part in which no layer has a window, where the library insists on one. `drop` the window's
    size: the family is then one without windows. `widen`: say that all have one, as wide as can be; only where layers
    with and without differ in nothing else."""
    step: int = 1
    """Layers differ by their number modulo this in what no metadata says: a part begins at a multiple."""
    step_key: str = ""
    """The metadata's own number for that."""
    least: bool = False
    """A part has at least so many layers, since one without a layer of each kind is none for the library."""
    own_head: bool = False
    """It must be given a head even where the embedding could be it."""
    rows_need_sections: bool = False
    """It takes rows only where its rotation has sections. All of one position, they change nothing."""
    known_by_layers: tuple[int, ...] = ()
    """The library takes a model with so many layers for a certain one and computes otherwise: such a model cannot be
    cut, and none can be cut so that a part has so many."""


PLAIN, OWN_HEAD = Family(), Family(own_head=True)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral3", "mistral4", "deci", "arcee", "seed_oss", "nanbeige", "maincoder"), PLAIN),
    **dict.fromkeys(("qwen2", "qwen2vl", "qwen3", "qwen3moe", "grovemoe", "phi3", "chatglm", "pangu-embedded"), PLAIN),
    **dict.fromkeys(("command-r", "starcoder2", "olmo", "exaone", "exaone4", "falcon", "openelm", "jais2"), PLAIN),
    **dict.fromkeys(("granite", "granitemoe", "minicpm", "ernie4_5", "hunyuan-dense", "hunyuan_vl", "grok"), PLAIN),
    **dict.fromkeys(("hunyuan-moe", "hy_v3", "deepseek", "arctic", "ernie4_5-moe", "mamba"), PLAIN),
    **dict.fromkeys(("qwen", "qwen2moe", "stablelm", "internlm2", "nemotron", "gptneox", "phi2", "phimoe"), OWN_HEAD),
    **dict.fromkeys(("orion", "baichuan", "xverse", "plamo", "codeshell", "dbrx", "minimax-m2", "olmoe"), OWN_HEAD),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "dots1"), OWN_HEAD),
    "gemma": Family(rows_enter_at="inp_scaled"),
    "gemma2": Family(rows_enter_at="inp_scaled", window_period=2, all_full="widen", known_by_layers=(46,)),
    "gemma3": Family(scaled_embedding=True, window_period=6, all_full="drop", known_by_layers=(62,)),
    "gpt-oss": Family(window_period=2, all_full="widen", own_head=True),
    "olmo2": Family(window_period=4, all_full="drop", own_head=True),
    "mellum": Family(window_period=4, all_full="drop", own_head=True),
    "cohere2": Family(window_period=4),
    "exaone-moe": Family(window_period=4, own_head=True),
    "deepseek2": Family(known_by_layers=(26, 27)),
    "glm4moe": Family(rows_need_sections=True),
    "llama4": Family(window_period=4, step=4),
    "smollm3": Family(step=4),
    **dict.fromkeys(
        ("qwen3next", "qwen35", "qwen35moe"), Family(step=4, step_key="full_attention_interval", least=True)
    ),
}
