"""Shared by the tests of stages on onnxruntime."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_model_is_small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' tiny models stand for large ones, whose weights stay as they are stored. Not where a test is about
    small ones: it asks for `small_models`."""
    if "small_models" not in request.fixturenames:
        monkeypatch.setattr("node.weights.small.SMALL_BYTES", 0)


@pytest.fixture
def small_models() -> None:
    """Small models are small."""
