"""What may be loaded where, seen from outside: in fresh interpreters, by what ends up in `sys.modules`."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import node
import parallax_tui

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "mlx", "sglang"}
EXTRAS = {"torch", "transformers", "mlx", "mlx_lm", "cffi", "sglang"}
SCREENS = {"textual", "rich"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules after running `code` in a fresh interpreter."""
    probe = f"import sys, json\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules_of(package: object, *, but: tuple[str, ...] = ()) -> list[str]:
    """Every module of a package, by name."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")  # type: ignore[attr-defined]
    return [module.name for module in found if not module.name.endswith("__main__") and not module.name.startswith(but)]


def test_the_node_process_loads_neither_screens_nor_tensor_libraries() -> None:
    assert not loaded_by("import node.main") & (SCREENS | HEAVY)


def test_no_module_of_the_node_loads_screens() -> None:
    names = modules_of(node)
    assert {"node.main", "node.engine.torch.backend"} <= set(names)
    code = f"""
import importlib
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # a backend's library may be absent
        if (error.name or "").split(".")[0] not in {EXTRAS!r}:
            raise
"""
    assert "textual" not in loaded_by(code)


def test_no_module_of_the_terminal_loads_the_network_or_tensor_libraries() -> None:
    names = modules_of(parallax_tui)
    assert "parallax_tui.app" in names
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    assert not loaded & (HEAVY | {"libp2p", "trio", "starlette"})


@pytest.mark.parametrize("arguments", [["--help"], ["node", "--help"], ["models", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"from parallax_tui.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass"
    assert not loaded_by(code) & (HEAVY | SCREENS | {"libp2p", "trio", "httpx", "numpy", "huggingface_hub"})


def test_a_question_on_the_command_line_loads_no_library_for_http_nor_a_screen() -> None:
    code = """
import parallax_tui.cli
parallax_tui.cli.build_parser()
import parallax_tui.headless.child_nodes, parallax_tui.headless.one_question, parallax_tui.headless.orderly_end
import parallax_tui.headless.piped
"""
    assert not loaded_by(code) & (
        HEAVY | SCREENS | {"httpx", "trio", "libp2p", "numpy", "huggingface_hub", "starlette"}
    )


def test_the_app_paints_before_it_loads_a_library_for_http() -> None:
    assert not loaded_by("import parallax_tui.app, parallax_tui.screens.starting") & {"httpx", "click", "trio"}


def test_what_starts_workers_is_there_before_anything_that_takes_long() -> None:
    loaded = loaded_by("import node.worker_start")
    assert not loaded & (HEAVY | SCREENS | {"trio", "msgspec", "numpy", "httpx", "libp2p"})


def test_the_worker_needs_nothing_of_ours_but_engine_and_wire() -> None:
    code = "import node.engine.worker\nprint(json.dumps(sorted(n for n in sys.modules if n.startswith('node.'))))"
    probe = f"import sys, json\n{code}"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in json.loads(done.stdout)}
    assert rooms <= {"engine", "wire", "errors"}


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == node.__version__


def test_every_package_explains_itself() -> None:
    for folder in (ROOT, ROOT / "node", ROOT / "parallax_tui"):
        assert len((folder / "README.md").read_text().splitlines()) > 20, folder


def test_the_readmes_name_every_room() -> None:
    for package in ("node", "parallax_tui"):
        text = (ROOT / package / "README.md").read_text()
        rooms = [path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()]
        assert rooms
        assert [room for room in rooms if f"{room}/" not in text] == []


def test_the_readme_shows_every_command_and_option_that_there_is() -> None:
    text = (ROOT / "README.md").read_text()
    for arguments in ([], ["node"], ["plan"], ["status"]):
        done = subprocess.run(
            [sys.executable, "-m", "parallax_tui.cli", *arguments, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        options = {word.rstrip(",") for word in done.stdout.split() if word.startswith("--") and len(word) > 3}
        assert [option for option in sorted(options) if option not in text] == []


def test_no_workplace_detail_has_got_into_the_project() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".tcss", ""} and path.is_file() and path != Path(__file__):
            text = path.read_text(errors="replace")
            assert "/work/" not in text, name
            assert "/tmp/dev" not in text, name
