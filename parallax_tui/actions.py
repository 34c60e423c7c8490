"""Everything that a person can do, in one table. Bindings, key hints, palette and help are made from it, nothing else.

An action's id is `scope.name`; the scope's screen or widget (or the app, for `app`) has the method `action_name`.
Terminals send ctrl+h, ctrl+i and ctrl+m as backspace, tab and enter, so no action may have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual.binding import Binding, BindingType

SCOPES = {
    "app": "Everywhere",
    "chat": "Chat",
    "prompt": "While typing",
    "topology": "Topology",
    "help": "Help",
}
"""Scopes in the order of the help, with their titles."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that can be done."""

    id: str
    """`scope.name`: the key in keymap.toml."""
    title: str
    """In the palette and in the help."""
    tooltip: str
    """One sentence more."""
    key: str
    """Default keys, comma separated; empty for none."""
    hint: str = ""
    """Word in the line of keys; empty keeps it out of there."""
    rank: int = 5
    """Hints with the highest rank go first where the line is too short."""
    priority: bool = False
    """Taken before the focused widget sees the key."""
    in_palette: bool = True
    """Whether it makes sense to look it up by name."""

    @property
    def scope(self) -> str:
        return self.id.partition(".")[0]

    @property
    def method(self) -> str:
        return self.id.partition(".")[2].replace("-", "_")


ACTIONS: tuple[Action, ...] = (
    Action("prompt.send", "Send", "Ask what is written", "enter", "send", 1, in_palette=False),
    Action("prompt.new-line", "New line", "In the question", "ctrl+j,shift+enter", "new line", 4, in_palette=False),
    Action("prompt.earlier", "Earlier question", "On the first line", "up", in_palette=False),
    Action("prompt.later", "Later question", "On the last line", "down", in_palette=False),
    Action("chat.stop", "Stop the answer", "What is written so far stays", "escape", "stop", 0),
    Action("chat.regenerate", "Answer again", "Drops the last answer for another", "ctrl+r", "again", 5, priority=True),
    Action("chat.clear", "Clear the chat", "On an empty chat: brings it back", "ctrl+l", "clear", 6, priority=True),
    Action("chat.copy", "Copy the answer", "The last one, to the clipboard", "ctrl+y", priority=True),
    Action("chat.page-up", "Scroll up", "By a page", "pageup", priority=True, in_palette=False),
    Action("chat.page-down", "Scroll down", "By a page", "pagedown", priority=True, in_palette=False),
    Action("chat.end", "Scroll to the end", "And follow the answer again", "ctrl+end", priority=True, in_palette=False),
    Action("topology.back", "Back", "To the chat", "escape", "back", 1, in_palette=False),
    Action("help.close", "Close the help", "Back to where you were", "escape,q,f1", "close", 1, in_palette=False),
    Action("app.topology", "Topology", "Nodes, layers, where the time goes", "f2", "topology", 2, priority=True),
    Action("app.help", "Help", "All keys", "f1,?", "help", 3),
    Action(
        "app.palette",
        "Commands",
        "Find a command by its name",
        "ctrl+p",
        "commands",
        7,
        priority=True,
        in_palette=False,
    ),
    Action("app.theme", "Change the theme", "Other colours", ""),
    Action("app.interrupt", "Stop, then quit", "Pressed twice it quits", "ctrl+c", priority=True, in_palette=False),
    Action("app.quit", "Quit", "And stops a node that it started", "ctrl+q", "quit", 2, priority=True),
)

_BY_ID = {action.id: action for action in ACTIONS}


def action(action_id: str) -> Action:
    """The action of that id."""
    return _BY_ID[action_id]


def in_scope(scope: str) -> tuple[Action, ...]:
    """The scope's actions, in the order of the table."""
    return tuple(one for one in ACTIONS if one.scope == scope)


def bindings(scope: str) -> list[BindingType]:
    """For the class of that scope. An action without a default key gets one that no terminal sends, so that a keymap
    can still give it another."""
    return [
        Binding(
            one.key or f"unbound-{one.id}",
            one.method,
            one.title,
            show=False,
            priority=one.priority,
            tooltip=one.tooltip,
            id=one.id,
        )
        for one in in_scope(scope)
    ]


def keys_of(one: Action, keymap: Mapping[str, str]) -> tuple[str, ...]:
    """The keys in force, empty where the action has none."""
    keys = keymap.get(one.id, one.key)
    return tuple(key for key in keys.split(",") if key and not key.startswith("unbound-"))


_SHOWN = {
    "escape": "esc",
    "question_mark": "?",
    "pageup": "page up",
    "pagedown": "page down",
    "up": "↑",
    "down": "↓",
}


def shown_key(key: str) -> str:
    """The key as people read it: `^q`, `F2`, `esc`."""
    if key.startswith("f") and key[1:].isdigit():
        return key.upper()
    prefix, _, last = key.rpartition("+")
    last = _SHOWN.get(last, last)
    return f"^{last}" if prefix == "ctrl" and len(last) == 1 else f"{prefix}+{last}" if prefix else last
