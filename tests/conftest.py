"""What tests of several rooms share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from node.models import DEFAULT_REF, prepare
from node.models.progress import ignore_progress

# Machines that run this are shared and slow at times: how long an example takes says nothing about the code. Where
# CI is set, every run tries the same examples, and the search for new ones is left to people.
settings.register_profile(
    "shared machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    database=None,
)
settings.load_profile("shared machine")

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Greedy:
    """What the default model says to one prompt: greedy decoding in fp32, equal in llama.cpp and transformers."""

    prompt: str
    text: str
    ids: list[int]
    out: list[int]
    out_text: str


@pytest.fixture(scope="session")
def greedy_oracle() -> list[Greedy]:
    """Prompts and their answers."""
    return [Greedy(**entry) for entry in json.loads((DATA / "smollm2_greedy_f32.json").read_text(encoding="utf-8"))]


@pytest.fixture(scope="session")
def models_folder() -> Iterator[Path]:
    """A cache that the whole run shares: PARALLAX_MODELS where it is set, which spares the download, else a new one."""
    if shared := os.environ.get("PARALLAX_MODELS"):
        yield Path(shared)
        return
    folder = Path(tempfile.mkdtemp(prefix="parallax-test-models-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def default_model_folder(models_folder: Path) -> Path:
    """The embedded default model, fetched and converted once in a run."""
    return prepare(DEFAULT_REF, models_folder, None, ignore_progress)
