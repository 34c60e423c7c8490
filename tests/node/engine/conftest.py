"""Shared by the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.node.engine.driving import save_tiny, tiny_llama


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, and threads that wait for one another suffer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers as a checkpoint of one file. Never change it: it is shared."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    save_tiny(tiny_llama(), folder)
    return folder
