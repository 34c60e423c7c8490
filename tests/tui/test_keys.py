"""Actions and keymap: one table, every entry whole, overridable, and a bad file is only a notification."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallax_tui.actions import ACTIONS, SCOPES, action, keys_of, shown_key
from parallax_tui.keymap import load_keymap
from parallax_tui.screens.help import help_lines
from parallax_tui.state.cells import text_of
from tests.fakes.node_api import Answer, FakeNode
from tests.fakes.swarms import one_node
from tests.fakes.terminal import at_node

FORBIDDEN = {"ctrl+h", "ctrl+i", "ctrl+m"}


def read(tmp_path: Path, content: str) -> tuple[dict[str, str], tuple[str, ...]]:
    path = tmp_path / "keymap.toml"
    path.write_text(content, encoding="utf-8")
    keymap = load_keymap(path)
    return dict(keymap.keys), keymap.problems


def test_every_action_is_whole_and_in_the_help() -> None:
    said = "\n".join(text_of(line) for line in help_lines({}, 100))
    assert len({one.id for one in ACTIONS}) == len(ACTIONS)
    for one in ACTIONS:
        assert one.title
        assert one.tooltip
        assert one.scope in SCOPES
        assert not FORBIDDEN & set(one.key.split(","))
        assert one.title in said
        assert one.tooltip in said
        assert all(shown_key(key) in said for key in keys_of(one, {}))


def test_no_two_actions_of_one_place_share_a_key() -> None:
    for scopes in ({"chat", "prompt", "app"}, {"topology", "app"}):
        keys = [key for one in ACTIONS if one.scope in scopes for key in keys_of(one, {})]
        assert len(keys) == len(set(keys))


def test_keys_are_read_flat_or_in_tables(tmp_path: Path) -> None:
    keys, problems = read(
        tmp_path, '"chat.stop" = "f8"\n[app]\nhelp = "F3, ?"\nquit = "none"\n[chat]\nclear = "Ctrl+K"\n'
    )
    assert not problems
    assert keys == {
        "chat.stop": "f8",
        "app.help": "f3,question_mark",
        "app.quit": "unbound-app.quit",
        "chat.clear": "ctrl+k",
    }
    assert keys_of(action("app.quit"), keys) == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not toml", "not TOML"),
        ('"chat.fly" = "f8"', '"chat.fly" is no action'),
        ('"chat.stop" = 8', '"chat.stop" must be a key'),
        ('"chat.stop" = ["f8"]', '"chat.stop" must be a key'),
        ('"chat.stop" = "ctrl+h"', "terminals send ctrl+h as backspace"),
        ('"chat.stop" = "ctrl+i"', "as tab"),
        ('"chat.stop" = "CTRL+M"', "as enter"),
        ('"chat.stop" = "blub"', '"blub" is no key'),
        ('"chat.stop" = ""', "is no key"),
        ('"chat.stop" = "f8,,"', "is no key"),
        ('"chat.stop" = "hyperspace+a"', "is no key"),
        ('"chat.stop" = "ctrl+q"', "is both chat.stop and app.quit"),
        ('"chat.stop" = "f9"\n"chat.clear" = "f9"', '"f9" is both'),
        ("# " + "x" * 100_000, "at most"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_bad_entry_is_named_and_the_default_stays(content: str, said: str, tmp_path: Path) -> None:
    keys, problems = read(tmp_path, content)
    assert len(problems) == 1
    assert said in problems[0]
    assert "keymap.toml" in problems[0]
    assert len(keys) <= 1


def test_two_actions_may_swap_their_keys(tmp_path: Path) -> None:
    keys, problems = read(tmp_path, '"chat.clear" = "ctrl+r"\n"chat.regenerate" = "ctrl+l"\n')
    assert not problems
    assert len(keys) == 2


def test_unreadable_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "keymap.toml").mkdir()
    assert load_keymap(tmp_path / "keymap.toml").problems
    assert not load_keymap(tmp_path / "none").problems


async def test_the_keymap_is_in_force_and_shown(node: FakeNode) -> None:
    node.state = one_node()
    node.answers = [Answer(["Paris."])]
    folder = node.home.config.parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keymap.toml").write_text(
        '"prompt.send" = "ctrl+s"\n"app.topology" = "f6"\n"chat.fly" = "f8"\n', encoding="utf-8"
    )
    async with at_node(node, size=(120, 40)) as terminal:
        await terminal.shows("^s send", "F6 topology", 'chat.fly" is no action')
        await terminal.press("a", "enter", "b", "ctrl+s")
        await terminal.shows("▌ a", "▌ b", "Paris.")
        await terminal.press("f6")
        await terminal.until(lambda: terminal.app.current_mode == "topology")
