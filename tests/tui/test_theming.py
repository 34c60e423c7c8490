"""Theme files: the shipped ones are good, bad ones are named and skipped, none ends the app."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.home import Home
from parallax_tui import theming
from parallax_tui.cli import main
from tests.fakes.node_api import FakeNode
from tests.fakes.swarms import three_nodes
from tests.fakes.terminal import at_node, at_terminal

GOOD = (theming.shipped_folder() / "parallax-dark.toml").read_text(encoding="utf-8")
SHIPPED = ("parallax-colour-blind", "parallax-dark", "parallax-light", "parallax-mono")
BAD = {
    "not-toml": ("this is not = = toml", "not TOML"),
    "binary": ("\x00\x01", "not TOML"),
    "empty": ("", '"primary" is missing'),
    "unknown-key": (GOOD.replace("primary =", "primery ="), '"primery" is no key'),
    "unknown-colour": (GOOD.replace('"#6cb6d9"', '"notacolour"', 1), '"primary" is not a colour'),
    "auto": (GOOD.replace('"#6cb6d9"', '"auto"', 1), '"primary"'),
    "transparent": (GOOD.replace('"#6cb6d9"', '"transparent"', 1), '"primary"'),
    "alpha": (GOOD.replace('"#6cb6d9"', '"#6cb6d980"', 1), '"primary" is not a colour'),
    "number": (GOOD.replace('"#6cb6d9"', "7", 1), '"primary" must be a colour'),
    "list": (GOOD.replace('"#6cb6d9"', "[1, 2]", 1), '"primary" must be a colour'),
    "css": (GOOD.replace('"#6cb6d9"', '"red; } * { display: none"', 1), '"primary" is not a colour'),
    "dark-text": (GOOD.replace("dark = true", 'dark = "yes"'), '"dark" must be true or false'),
    "bad-name": (GOOD.replace('name = "parallax-dark"', 'name = "Ünï cörn"'), '"name" must be'),
    "variables": (GOOD.split("[variables]", maxsplit=1)[0] + 'variables = "none"', '"variables" must be a table'),
    "bad-variable": (GOOD.replace('node-1 = "#6cb6d9"', 'node-1 = "blurple"'), '"variables.node-1"'),
    "unknown-variable": (GOOD.replace("node-1 =", "border ="), '"variables.border"'),
    "code-style": (GOOD.replace('"one-dark"', '"no-style"'), '"code_style"'),
    "huge": ("# " + "x" * 100_000, "more than"),
    "deep": ("a = " + "[" * 5000, "not TOML"),
}


@pytest.mark.parametrize("name", SHIPPED)
async def test_every_shipped_theme_paints_every_screen(name: str, node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node, theme=name) as terminal:
        assert terminal.app.theme == name
        await terminal.press("f2")
        await terminal.shows("limits you")
        await terminal.press("f1")
        await terminal.shows("keys")


def test_the_shipped_themes_are_all_there() -> None:
    themes = theming.load_themes([theming.shipped_folder()])
    assert tuple(sorted(themes.by_name)) == SHIPPED
    assert not themes.problems


@pytest.mark.parametrize("name", BAD)
def test_a_bad_theme_is_skipped_and_its_file_and_key_are_named(name: str, tmp_path: Path) -> None:
    content, said = BAD[name]
    (tmp_path / f"{name}.toml").write_text(content, encoding="utf-8")
    (tmp_path / "good.toml").write_text(GOOD.replace('name = "parallax-dark"', ""), encoding="utf-8")
    themes = theming.load_themes([tmp_path, tmp_path / "not there"])
    assert list(themes.by_name) == ["good"]
    assert len(themes.problems) == 1
    assert f"{name}.toml" in themes.problems[0]
    assert said in themes.problems[0]


def test_what_is_no_readable_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    themes = theming.load_themes([tmp_path])
    assert not themes.by_name
    assert len(themes.problems) == 2


async def test_a_folder_of_bad_themes_never_ends_the_app(node: FakeNode) -> None:
    folder = node.home.config.parent / "themes"
    folder.mkdir(parents=True)
    for name, (content, _) in BAD.items():
        (folder / f"{name}.toml").write_text(content, encoding="utf-8")
    async with at_terminal(node.home, theme="no-such-theme", size=(120, 60)) as terminal:
        await terminal.shows("starting node…", 'theme "no-such-theme" is not there')
        assert terminal.app.theme == theming.DEFAULT


def test_a_theme_that_is_not_there_is_refused_and_those_that_are_there_are_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARALLAX_HOME", str(home.data))
    assert main(["--theme", "nope"]) == 2
    told = capsys.readouterr().err
    assert "--theme 'nope'" in told
    assert all(name in told for name in SHIPPED)


async def test_a_theme_of_ones_own_replaces_a_shipped_one(node: FakeNode) -> None:
    folder = node.home.config.parent / "themes"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(
        GOOD.replace('background = "#12151a"', 'background = "#123456"'), encoding="utf-8"
    )
    async with at_terminal(node.home, theme="parallax-dark") as terminal:
        assert terminal.app.theme_variables["background"].lower() == "#123456"


def test_a_damaged_choice_counts_as_none(tmp_path: Path) -> None:
    for content in ("theme = 7", "===", ""):
        (tmp_path / theming.CHOICE_FILE).write_text(content, encoding="utf-8")
        assert theming.remembered_choice(tmp_path) is None
    theming.remember_choice(tmp_path / "new", "parallax-light")
    assert theming.remembered_choice(tmp_path / "new") == "parallax-light"


async def test_without_colours_everything_is_still_said(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    node.state = three_nodes()
    async with at_node(node) as terminal:
        await terminal.press("f2")
        await terminal.shows("● ready", "█ compute", "10–19")
