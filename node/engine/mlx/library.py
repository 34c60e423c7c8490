"""mlx-lm's model classes by a config's `model_type`. Looks at names and files; what it imports is their modules alone.

The library's own first module brings in transformers, which takes seconds, and lowers the process's limit of open
files. Its models need neither, so the package is made known by its place and only they are imported.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
from typing import Any

from node.errors import LoadFailed

LIBRARY = "mlx_lm"
NAME = re.compile(r"[a-z0-9_]{1,64}")
"""Of a module: a config comes from a file, and names what is imported."""

MODULE_OF = {
    "mistral": "llama",
    "llava": "mistral3",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
    "gemma4_unified": "gemma4",
    "deepseek_v41_text": "deepseek_v41",
}
"""Families that share another's module: the library's own table, which lies in what is not imported."""


def make_library_known() -> None:
    """Put the package into `sys.modules` without running its first module. Harmless when repeated."""
    if LIBRARY in sys.modules:
        return
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None:
        raise ImportError(f"{LIBRARY} is not installed")
    sys.modules[LIBRARY] = importlib.util.module_from_spec(spec)


def has_family(family: str) -> bool:
    """Whether the library has a module for a `model_type`. Imports nothing."""
    module = MODULE_OF.get(family, family)
    if not NAME.fullmatch(module):
        return False
    spec = importlib.util.find_spec(LIBRARY)
    places = spec.submodule_search_locations if spec is not None else None
    return any(importlib.machinery.PathFinder.find_spec(module, [f"{place}/models"]) for place in places or ())


def model_of(config: dict[str, Any], asked: str) -> Any:
    """The whole model of a config, whose parameters are values to be computed, which take no memory.

    Raises:
        LoadFailed: a family that the library does not have, or a config that its module cannot use.
    """
    make_library_known()
    family = str(config.get("model_type", ""))
    if not has_family(family):
        raise LoadFailed(asked, f"mlx-lm has no model {family[:64] or 'without a model_type'}")
    module = importlib.import_module(f"{LIBRARY}.models.{MODULE_OF.get(family, family)}")
    try:
        return module.Model(module.ModelArgs.from_dict(config)).eval()
    except Exception as error:  # whatever a config of another time makes the library raise
        raise LoadFailed(
            asked, f"mlx-lm cannot build a {family} of config.json: {type(error).__name__}: {error}"
        ) from error
