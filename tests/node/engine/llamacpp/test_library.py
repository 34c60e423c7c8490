"""llama.cpp's library: found, held against the structs that we know, and quiet."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.engine.llamacpp import library as room
from node.engine.llamacpp.definitions import CONTEXT_DEFAULTS, MODEL_DEFAULTS, differences
from node.engine.llamacpp.library import check_defaults, open_library
from node.errors import EngineError, LoadFailed
from tests.node.engine.llamacpp.chains import load_here


def faked(**changes: float) -> Any:
    """A library whose contexts have other default values."""
    return SimpleNamespace(
        llama=SimpleNamespace(
            llama_model_default_params=lambda: SimpleNamespace(**MODEL_DEFAULTS),
            llama_context_default_params=lambda: SimpleNamespace(**{**CONTEXT_DEFAULTS, **changes}),
        )
    )


def test_the_installed_library_is_the_one_that_we_know(library: None) -> None:
    check_defaults(open_library())


@pytest.mark.parametrize("change", [{"n_batch": 512}, {"type_v": 0}, {"kv_unified": True}, {"yarn_beta_slow": 0.0}])
def test_a_library_that_is_laid_out_otherwise_is_refused(change: dict[str, float]) -> None:
    check_defaults(faked())
    with pytest.raises(EngineError, match=r"parameters for contexts say that .* is .*, not .*; install it again"):
        check_defaults(faked(**change))


def test_a_field_more_in_the_middle_shows_in_the_values_behind_it() -> None:
    """As the last change of theirs did: a field before the switches."""
    names = list(CONTEXT_DEFAULTS)
    shifted = dict(zip(names[1:], list(CONTEXT_DEFAULTS.values()), strict=False))
    assert differences({**CONTEXT_DEFAULTS, **shifted}, CONTEXT_DEFAULTS)
    assert differences({}, {"n_ctx": 512}) == ["n_ctx is nan, not 512"]


def test_without_the_wheel_or_with_another_one_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, match in ((None, "is not installed"), ("0.1.5", r"0\.1\.5 is installed, but 0\.2\.0 is needed")):
        monkeypatch.setattr(room, "installed_version", lambda version=version: version)
        with pytest.raises(EngineError, match=match + r".*pip install 'parallax-tui\[llamacpp\]'"):
            room.open_library.__wrapped__()


def test_it_writes_into_our_log_at_debug_and_nowhere_else(
    tiny_gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").write_bytes((tiny_gguf / "model.gguf").read_bytes())
    with caplog.at_level(logging.DEBUG, logger=room.__name__):
        load_here(tmp_path, 0, 6).drop()
        data = (tmp_path / "model.gguf").read_bytes()
        at = data.index(b"llama.attention.head_count") + len(b"llama.attention.head_count") + 4
        (tmp_path / "model.gguf").write_bytes(data[:at] + (7).to_bytes(4, "little") + data[at + 4 :])
        with pytest.raises(LoadFailed, match="llama_model_load"):
            load_here(tmp_path, 0, 6)
    assert any("llama" in record.message for record in caplog.records)
    assert {record.levelno for record in caplog.records if record.name == room.__name__} == {logging.DEBUG}
    assert capfd.readouterr() == ("", "")
