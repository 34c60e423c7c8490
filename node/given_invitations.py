"""Invitations that a node is given when it starts: each is the swarm's secret, which no list of processes should show.

On the command line every user of the machine can read them, so there are three other ways: `--join -` reads one from
stdin, PARALLAX_JOIN holds one, PARALLAX_JOIN_FILE names a file that does. None of them is ever printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from node.errors import UsageError

FROM_STDIN = "-"
VARIABLE, FILE_VARIABLE = "PARALLAX_JOIN", "PARALLAX_JOIN_FILE"
LIMIT_BYTES = 64 * 1024


def invitations(options: tuple[str, ...], environment: MutableMapping[str, str] = os.environ) -> tuple[str, ...]:
    """The tokens of `--join`, else those that the environment gives, which is emptied of them: children need none.

    Raises:
        UsageError: stdin or the file gives none.
    """
    token, file = environment.pop(VARIABLE, "").strip(), environment.pop(FILE_VARIABLE, "").strip()
    if options:
        return tuple(_from_stdin() if option == FROM_STDIN else option for option in options)
    if token:
        return (_from_stdin() if token == FROM_STDIN else token,)
    return (_from_file(Path(file).expanduser()),) if file else ()


def _from_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("--join -: there is no stdin to read the invitation from")
    if sys.stdin.isatty():
        from getpass import getpass

        token = getpass("invitation: ").strip()
    else:
        token = _first_line(sys.stdin.buffer.readline(LIMIT_BYTES))
    if not token:
        raise UsageError("--join -: stdin holds no invitation; pipe in the line that `parallax invite` printed")
    return token


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            token = _first_line(file.readline(LIMIT_BYTES))
    except OSError as error:
        raise UsageError(f"{FILE_VARIABLE} {path}: {error.strerror or error}") from error
    if not token:
        raise UsageError(f"{FILE_VARIABLE} {path}: holds no invitation; put the line of `parallax invite` there")
    return token


def _first_line(line: bytes) -> str:
    return line.decode("ascii", "replace").strip()
