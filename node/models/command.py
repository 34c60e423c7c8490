"""What `parallax models` does: list, pull, import, rm. Tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TextIO, TypeVar

from node.errors import ParallaxError, UsageError
from node.models.child import identify_in_child, import_in_child, prepare_in_child
from node.models.facts import layer_count
from node.models.held import stored_weights
from node.models.installed import InstalledModel, choosable_name, installed, remove
from node.models.progress import Phase
from node.models.quality import form_of, quality_of

Action = Literal["list", "pull", "import", "rm"]
T = TypeVar("T")

DOING: dict[Phase, str] = {"fetch": "fetching", "convert": "converting", "load": "checking", "repair": "repairing"}
INTERRUPTED_STATUS = 130
WIDTH = 79


def run(action: Action, argument: str | None, models: Path, *, as_json: bool, asks: bool = False) -> int:
    """Do one action; returns the exit status. Errors are told on stderr.

    Args:
        argument: for `pull` what `--model` takes (None: the default), for `import` a path, for `rm` a name.
        asks: ask before files are removed.
    """
    try:
        match action:
            case "list":
                _show(installed(models), as_json=as_json)
            case "pull":
                _show([_pull(argument, models)], as_json=as_json, among=installed(models))
            case "import":
                taken = _import(_needed(argument, "a .gguf file or a folder"), models)
                _show([taken], as_json=as_json, among=installed(models))
            case "rm":
                name = _needed(argument, "a model's name")
                if asks and not _agreed(name, models):
                    print(f"parallax: {name} stays", file=sys.stderr)
                    return 1
                _show([remove(name, models)], as_json=as_json, verb="removed")
    except ParallaxError as error:
        print(f"parallax: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    return 0


def _agreed(name: str, models: Path) -> bool:
    """Whether whoever sits there wants it; an unknown name is refused without a question."""
    sizes = [model.bytes_on_disk for model in installed(models) if model.name == name]
    if not sizes:
        return True
    print(f"remove {name} ({size_text(sum(sizes))})? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _needed(argument: str | None, what: str) -> str:
    if argument is None:
        raise UsageError(f"{what} is needed; see `parallax models --help`")
    return argument


def _pull(choice: str | None, models: Path) -> InstalledModel:
    """Fetch the whole model: what describes it first, which tells how many layers there are."""
    with _ProgressLine(sys.stderr) as line:
        ref = _in_trio(lambda: identify_in_child(choice, models, line.show))
        folder = _in_trio(lambda: prepare_in_child(ref, models, None, line.show))
        layers = (0, layer_count(folder))
        folder = _in_trio(lambda: prepare_in_child(ref, models, layers, line.show))
    return next(model for model in installed(models) if model.ref.digest == ref.digest)


def _import(path: str, models: Path) -> InstalledModel:
    with _ProgressLine(sys.stderr) as line:
        ref = _in_trio(lambda: import_in_child(Path(path), models, line.show))
    return next(model for model in installed(models) if model.ref.digest == ref.digest)


def _in_trio(work: Callable[[], Awaitable[T]]) -> T:
    import trio  # listing and removing need none

    async def main() -> T:
        return await work()

    return trio.run(main)


def _show(
    models: list[InstalledModel], *, as_json: bool, verb: str = "", among: list[InstalledModel] | None = None
) -> None:
    """Args:
    among: all that are installed, which names are chosen from; `models` where left out.
    """
    if as_json:
        forms = [stored_weights(Path(model.path)) for model in models]
        rows = [
            {
                "name": model.name,
                "choose": choosable_name(model, among or models),
                "source": model.source,
                "bytes_on_disk": model.bytes_on_disk,
                "path": model.path,
                "complete": model.complete,
                "state": model.state,
                "form": form_of(stored),
                "quality": asdict(quality) if (quality := quality_of(stored)) is not None else None,
            }
            for model, stored in zip(models, forms, strict=True)
        ]
        print(json.dumps(rows, indent=2))
    elif verb:
        for model in models:
            print(f"{verb} {model.name} ({size_text(model.bytes_on_disk)})")
    elif models:
        _table(models, among or models)
    else:
        print("no models yet; `parallax models pull default` fetches the default one")


def _table(models: list[InstalledModel], among: list[InstalledModel]) -> None:
    """The names are those that `--model` takes: longer ones where several models are called alike."""
    rows = [("NAME", "SIZE", "STATE", "FORM", "TOP-1", "SOURCE")]
    for model in models:
        stored = stored_weights(Path(model.path))
        size, name = size_text(model.bytes_on_disk), choosable_name(model, among)
        rows.append((name, size, model.state, form_of(stored), _top1(stored), model.source))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, size, state, form, top1, source in rows:
        print(
            f"{name:<{widths[0]}}  {size:>{widths[1]}}  {state:<{widths[2]}}  {form:<{widths[3]}}"
            f"  {top1:>{widths[4]}}  {source}"
        )


def _top1(stored: Mapping[str, int]) -> str:
    """How often the first choice is that of 32-bit arithmetic on the same weights."""
    quality = quality_of(stored)
    return f"{100 * quality.top1:.0f} %" if quality is not None else "-"


def size_text(count: int) -> str:
    """`538 MB`: three digits are enough for people."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 99.5 or units[0] == "B" else f"{value:.1f} {units[0]}"


class _ProgressLine:
    """One line that is written over and over on a terminal; a line per phase and text elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._said = ""

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal and self._said:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def show(self, phase: Phase, done_bytes: int, total_bytes: int, text: str) -> None:
        """An `OnProgress`."""
        doing = DOING[phase]
        if self._terminal:
            share = f"{100 * done_bytes // total_bytes:3d} %  " if total_bytes else ""
            amount = f"{size_text(done_bytes)} of {size_text(total_bytes)}  " if total_bytes else ""
            self._said = f"{doing}  {share}{amount}{text}"[:WIDTH]
            self._out.write(f"\r\x1b[K{self._said}")
        else:
            said = f"{doing} ({size_text(total_bytes)})" if total_bytes else f"{doing}: {text}"
            if said != self._said:
                self._said = said
                self._out.write(said + "\n")
        self._out.flush()
