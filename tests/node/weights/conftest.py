"""Shared by the tests of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.node.weights.small_models import CONFIGS, make_model


@pytest.fixture(scope="session", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny random model of each family. Never change it: it is shared."""
    return make_model(request.param)


@pytest.fixture(scope="session")
def published(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder as transformers publishes it, experts one by one."""
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    return folder
