"""Theme files: found, checked colour by colour, and made into Textual themes.

Textual takes any text for a colour and ends the whole program when the theme is chosen, so everything is checked here,
at the door. A file that cannot be taken is skipped and named; the others stay.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import tomli_w
from pygments.styles import get_all_styles  # type: ignore[import-untyped]
from textual.color import Color, ColorParseError
from textual.theme import Theme

from node.home import Home

DEFAULT = "parallax-dark"
SIZE_LIMIT_BYTES = 64 * 1024
CHOICE_FILE = "tui.toml"
COLOURS = (
    "primary",
    "secondary",
    "accent",
    "success",
    "warning",
    "error",
    "foreground",
    "background",
    "surface",
    "panel",
)
"""All of them have to be there: Textual would make up what is missing, and not to the theme's taste."""
OWN_VARIABLES = ("node-1", "node-2", "node-3", "node-4", "hop-wire", "hop-queue", "hop-compute", "hop-serialise")
"""May be given under [variables]; the defaults are made of the colours above."""
FALLBACK_VARIABLES = {
    "node-1": "#6cb6d9",
    "node-2": "#b39ddb",
    "node-3": "#8cc79b",
    "node-4": "#e0b46c",
    "hop-wire": "#b39ddb",
    "hop-queue": "#e0b46c",
    "hop-compute": "#6cb6d9",
    "hop-serialise": "#8cc79b",
}
"""For a theme that is not ours."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_HEX = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


@dataclass(frozen=True, slots=True)
class ThemeFile:
    """One checked theme."""

    theme: Theme
    code_style: str
    """The Pygments style of code in answers."""


@dataclass(frozen=True, slots=True)
class Themes:
    """What was found, and what could not be taken."""

    by_name: Mapping[str, ThemeFile]
    problems: tuple[str, ...] = ()


class BadTheme(ValueError):
    """A theme that cannot be taken; the message names the key."""


def shipped_folder() -> Path:
    """The themes of the package; beside it where the package is installed in place."""
    inside = Path(str(files("parallax_tui"))) / "themes"
    return inside if inside.is_dir() else inside.parent.parent / "themes"


def themes_of(home: Home) -> Themes:
    """The shipped themes, and those in `themes/` beside this home's config.toml."""
    return load_themes([shipped_folder(), home.config.parent / "themes"])


def load_themes(folders: Iterable[Path]) -> Themes:
    """The themes of all folders; of two with one name the later counts. A folder that is not there has none."""
    found: dict[str, ThemeFile] = {}
    problems: list[str] = []
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            try:
                theme_file = parse_theme(_read(path), path.stem)
            except BadTheme as problem:
                problems.append(f"{path}: {problem}")
            else:
                found[theme_file.theme.name] = theme_file
    return Themes(found, tuple(problems))


def _read(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as error:
        raise BadTheme(f"cannot be read ({error.strerror})") from error
    if len(data) > SIZE_LIMIT_BYTES:
        raise BadTheme(f"more than {SIZE_LIMIT_BYTES} bytes, which no theme needs")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadTheme(f"not TOML ({error})") from error


def parse_theme(table: Mapping[str, object], default_name: str) -> ThemeFile:
    """A theme out of its file's content.

    Raises:
        BadTheme: a key that is unknown, missing or has no fitting value.
    """
    for key in table:
        if key not in (*COLOURS, "name", "dark", "code_style", "variables"):
            raise BadTheme(f'"{key}" is no key of a theme; colours are {", ".join(COLOURS)}')
    name = table.get("name", default_name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadTheme('"name" must be of small letters, digits and hyphens, at most 40')
    dark = table.get("dark", True)
    if not isinstance(dark, bool):
        raise BadTheme('"dark" must be true or false')
    code_style = table.get("code_style", "github-dark" if dark else "vs")
    if not isinstance(code_style, str) or code_style not in set(get_all_styles()):
        raise BadTheme(f'"code_style" is no Pygments style: {code_style!r:.60}')
    for key in COLOURS:
        if key not in table:
            raise BadTheme(f'"{key}" is missing')
    colours = {key: _colour(key, table[key]) for key in COLOURS}
    variables = table.get("variables", {})
    if not isinstance(variables, dict):
        raise BadTheme('"variables" must be a table')
    for key in variables:
        if key not in OWN_VARIABLES:
            raise BadTheme(f'"variables.{key}" is no variable; there are {", ".join(OWN_VARIABLES)}')
    own = {key: _colour(f"variables.{key}", value) for key, value in variables.items()}
    theme = Theme(
        name=name,
        dark=dark,
        variables={**_defaults(colours), **own},
        primary=colours["primary"],
        secondary=colours["secondary"],
        accent=colours["accent"],
        success=colours["success"],
        warning=colours["warning"],
        error=colours["error"],
        foreground=colours["foreground"],
        background=colours["background"],
        surface=colours["surface"],
        panel=colours["panel"],
    )
    try:
        theme.to_color_system().generate()
    except (ColorParseError, ValueError, ArithmeticError) as error:
        raise BadTheme(f"its colours cannot be mixed ({error})") from error
    return ThemeFile(theme, code_style)


def _colour(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadTheme(f'"{key}" must be a colour in quotes; use "#rrggbb" or a name')
    if not _HEX.fullmatch(value) and not value.isalpha():
        raise BadTheme(f'"{key}" is not a colour: {value!r:.60}; use "#rrggbb" or a name')
    try:
        colour = Color.parse(value)
    except ColorParseError as error:
        raise BadTheme(f'"{key}" is not a colour: {value!r:.60}; use "#rrggbb" or a name') from error
    if colour.a != 1 or colour.ansi is not None:
        raise BadTheme(f'"{key}" must be opaque: {value!r:.60}; use "#rrggbb" or a name')
    return colour.hex


def _defaults(colours: Mapping[str, str]) -> dict[str, str]:
    return {
        "node-1": colours["primary"],
        "node-2": colours["secondary"],
        "node-3": colours["success"],
        "node-4": colours["accent"],
        "hop-wire": colours["secondary"],
        "hop-queue": colours["warning"],
        "hop-compute": colours["primary"],
        "hop-serialise": colours["accent"],
    }


def remembered_choice(config_folder: Path) -> str | None:
    """The theme that was chosen last, if any; a file that cannot be read counts as none."""
    try:
        name = _read(config_folder / CHOICE_FILE).get("theme")
    except BadTheme:
        return None
    return name if isinstance(name, str) else None


def remember_choice(config_folder: Path, name: str) -> None:
    """Write the choice, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    config_folder.mkdir(parents=True, exist_ok=True)
    beside = config_folder / f".{CHOICE_FILE}.{os.getpid()}"
    beside.write_text(tomli_w.dumps({"theme": name}), encoding="utf-8")
    os.replace(beside, config_folder / CHOICE_FILE)
