"""What tests of several rooms share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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
STORIES = Path(__file__).parent / "stories"


def pytest_configure(config: pytest.Config) -> None:
    """One cache of models for all processes of a run: PARALLAX_MODELS where it is set, which spares a download."""
    if "PARALLAX_MODELS" not in os.environ:
        folder = tempfile.mkdtemp(prefix="parallax-test-models-")
        os.environ["PARALLAX_MODELS"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stories start first: they take longest."""
    items.sort(key=lambda item: STORIES not in item.path.parents)


class ByFile(LoadScopeScheduling):
    """Worker processes take files from one another; stories go one after the other, since each fills both cores."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return "stories" if file.startswith("tests/stories/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """The library has a mark for this, which has no effect with every pytest."""
    return ByFile(config, log)


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
def models_folder() -> Path:
    """The cache that the whole run shares."""
    return Path(os.environ["PARALLAX_MODELS"])


@pytest.fixture(scope="session")
def default_model_folder(models_folder: Path) -> Path:
    """The embedded default model, fetched and converted once in a run."""
    return prepare(DEFAULT_REF, models_folder, None, ignore_progress)
