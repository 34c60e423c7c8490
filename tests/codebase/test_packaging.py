"""What an install brings, and what our wheel carries."""

from __future__ import annotations

import hashlib
import importlib.util
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NEEDS_A_COMPILER = {"fastecdsa", "libp2p"}
"""libp2p by requiring the other; .build/carry_libp2p.py."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build hook, with a small wheel of its own that lies where a source archive carries it."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("carry_libp2p", ROOT / ".build" / "carry_libp2p.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wheel = tmp_path / module.IN_ARCHIVE
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("libp2p/abc.py", "")
        archive.writestr("docs/conf.py", "")
        archive.writestr("libp2p-0.8.1.dist-info/licenses/LICENSE", "")
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return module


def run_hook(hook: ModuleType, root: Path, target: str, version: str) -> tuple[Any, dict[str, dict[str, str]]]:
    build_data: dict[str, dict[str, str]] = {"force_include": {}, "force_include_editable": {}}
    carrying = hook.CarryLibp2p(str(root), {}, None, None, str(root), target)
    carrying.initialize(version, build_data)
    return carrying, build_data


def test_no_dependency_needs_a_compiler() -> None:
    told = project()
    asked = [*told["dependencies"], *(each for extra in told["optional-dependencies"].values() for each in extra)]
    assert not {Requirement(requirement).name for requirement in asked} & NEEDS_A_COMPILER


def test_nothing_is_required_from_a_folder_or_an_address() -> None:
    assert [each for each in project()["dependencies"] if "@" in each] == []


@pytest.mark.parametrize(("version", "key"), [("standard", "force_include"), ("editable", "force_include_editable")])
def test_the_wheel_carries_libp2p_with_its_licences_where_nobody_else_looks(
    hook: ModuleType, tmp_path: Path, version: str, key: str
) -> None:
    carrying, build_data = run_hook(hook, tmp_path, "wheel", version)
    carried = build_data[key]
    assert sorted(carried.values()) == ["parallax_libp2p/libp2p", "parallax_libp2p/libp2p-0.8.1.dist-info"]
    assert all(Path(source).is_dir() for source in carried)
    carrying.finalize(version, build_data, "")
    assert not any(Path(source).exists() for source in carried)


def test_a_source_archive_carries_the_wheel_itself(hook: ModuleType, tmp_path: Path) -> None:
    _, build_data = run_hook(hook, tmp_path, "sdist", "standard")
    assert build_data["force_include"] == {str(tmp_path / hook.IN_ARCHIVE): hook.IN_ARCHIVE}


def test_another_wheel_than_the_published_one_is_refused(hook: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / hook.IN_ARCHIVE, "a") as archive:
        archive.writestr("libp2p/evil.py", "")
    with pytest.raises(RuntimeError, match="not the wheel that was published"):
        run_hook(hook, tmp_path, "wheel", "standard")


def test_the_index_that_uv_is_told_is_the_one_that_is_asked(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "mine=https://index.example/simple")
    monkeypatch.setenv("UV_INDEX", "https://a.example/x?y=1 b=https://b.example")
    environment = hook._pip_environment()
    assert environment["PIP_INDEX_URL"] == "https://index.example/simple"
    assert environment["PIP_EXTRA_INDEX_URL"] == "https://a.example/x?y=1 https://b.example"


def test_pips_own_settings_go_before_those_of_uv(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example/simple")
    assert hook._pip_environment()["PIP_INDEX_URL"] == "https://pip.example/simple"
