"""The keymap file: `"chat.stop" = "f8"` gives an action other keys, `"none"` takes its keys away.

A file or an entry that cannot be taken is a problem to show, never a reason to stop: the defaults stay in force.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from textual.keys import Keys, _character_to_key, key_to_character  # Textual is pinned, and has no public way

from parallax_tui.actions import ACTIONS, Action

FILE = "keymap.toml"
SIZE_LIMIT_BYTES = 64 * 1024
_SAME_BYTE = {"ctrl+h": "backspace", "ctrl+i": "tab", "ctrl+m": "enter"}
_MODIFIERS = {"ctrl", "shift", "alt", "super", "hyper", "meta"}
_NAMED = {key.value for key in Keys} | {"question_mark", "slash", "space", "tab", "enter", "escape"}


@dataclass(frozen=True, slots=True)
class Keymap:
    """Overrides by action id, as Textual takes them, and what could not be taken."""

    keys: Mapping[str, str]
    problems: tuple[str, ...] = ()


def load_keymap(path: Path) -> Keymap:
    """The file's overrides; empty where there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Keymap({})
    except OSError as error:
        return Keymap({}, (f"{path}: cannot be read ({error.strerror})",))
    if len(data) > SIZE_LIMIT_BYTES:
        return Keymap(
            {}, (f"{path}: {len(data)} bytes, at most {SIZE_LIMIT_BYTES} are read; the default keys are used",)
        )
    try:
        entries = _flat(tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        return Keymap({}, (f"{path}: not TOML ({error}); the default keys are used",))
    return _checked(entries, str(path))


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """`[chat] stop = …` and `"chat.stop" = …` mean the same."""
    entries: dict[str, object] = {}
    for key, value in table.items():
        entries |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return entries


def _checked(entries: Mapping[str, object], where: str) -> Keymap:
    keys: dict[str, str] = {}
    problems: list[str] = []
    known = {one.id: one for one in ACTIONS}
    for action_id, value in entries.items():
        if action_id not in known:
            problems.append(f'{where}: "{action_id}" is no action; F1 lists them')
        elif not isinstance(value, str):
            problems.append(f'{where}: "{action_id}" must be a key in quotes, such as "ctrl+r", or "none"')
        else:
            try:
                keys[action_id] = _keys(value) or f"unbound-{action_id}"
            except ValueError as error:
                problems.append(f'{where}: "{action_id}": {error}')
    for first, second, key in _clashes(keys):
        problems.append(f'{where}: "{key}" is both {first.id} and {second.id}; {first.id} keeps its default')
        keys.pop(first.id)
    return Keymap(keys, tuple(problems))


def _keys(value: str) -> str:
    """Textual's names of the keys in `value`, empty for none.

    Raises:
        ValueError: one of them is no key, or none that terminals can tell from another.
    """
    if value.strip().lower() == "none":
        return ""
    return ",".join(_key(one) for one in ([value] if value == "," else value.split(",")))


def _key(text: str) -> str:
    *modifiers, last = [text] if text == "+" else re.split(r"\+(?=.)", text.strip())
    name = _character_to_key(last.lower() if modifiers else last) if len(last) == 1 else last.lower()
    key = "+".join([*(modifier.lower() for modifier in modifiers), name])
    if key in _SAME_BYTE:
        raise ValueError(f"terminals send {key} as {_SAME_BYTE[key]}; choose another key")
    known = len(last) == 1 or name in _NAMED or key in _NAMED or key_to_character(name) is not None
    if not last or not known or not {modifier.lower() for modifier in modifiers} <= _MODIFIERS:
        raise ValueError(f'"{text.strip()}" is no key; write it like "ctrl+r", "f5" or "pageup"')
    return key


def _clashes(keys: Mapping[str, str]) -> list[tuple[Action, Action, str]]:
    """Overridden actions whose key another one has in the same place; the overridden one comes first."""
    found: list[tuple[Action, Action, str]] = []
    in_force = {one.id: set(keys.get(one.id, one.key).split(",")) - {""} for one in ACTIONS}
    lost: set[str] = set()
    for first in ACTIONS:
        for second in ACTIONS:
            if first.id not in keys or first is second or second.id in lost or not _meet(first, second):
                continue
            if shared := in_force[first.id] & in_force[second.id]:
                found.append((first, second, min(shared)))
                lost.add(first.id)
                break
    return found


def _meet(first: Action, second: Action) -> bool:
    """Whether both can be meant by one key press: in one scope, or one of them everywhere."""
    scopes = {first.scope, second.scope}
    if scopes == {"app", "help"}:  # the help lies over everything: only what is taken before it counts
        return all(one.priority for one in (first, second) if one.scope == "app")
    return len(scopes) == 1 or "app" in scopes or scopes == {"chat", "prompt"}
