"""Where a node keeps its things and how to reach it. All that differs between Linux, macOS and Windows is here.

`PARALLAX_HOME` moves everything, so that several nodes live on one machine; `PARALLAX_MODELS` moves the weights alone,
so that they can share them. Without them the platform's own folders are used (XDG on Linux).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from node.errors import NoNode, UsageError

APP = "parallax"
SOCKET_PATH_LIMIT = 100
"""A unix socket's path may have 107 bytes on Linux and 103 on macOS."""

HAS_UNIX_SOCKETS = sys.platform != "win32"
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
"""What asks a node to leave gracefully."""


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def own_folder(path: Path) -> Path:
    """Make a folder for a socket where anybody may make folders; one that is there must be ours alone.

    Raises:
        UsageError: it is somebody else's, others may enter it, or it is no folder.
    """
    private_folder(path)
    if (fault := _foreign(path)) is not None:
        raise UsageError(f"{path}: {fault}; remove it, or set PARALLAX_HOME to a short path of your own")
    return path


def _foreign(path: Path) -> str | None:
    """Why a socket in this folder may be another user's; the folder itself is looked at, not what a link points to."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if hasattr(os, "getuid"):
        if found.st_uid != os.getuid():
            return "belongs to another user"
        if found.st_mode & 0o077:
            return f"can be entered by others (its mode is {stat.S_IMODE(found.st_mode):04o})"
    return None


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    private_folder(path.parent)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # writing does not tell where
        raise
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class Control:
    """How a client on this machine reaches a node: a unix socket, or loopback TCP with a token."""

    socket_path: str | None = None
    """Mode 0600, in a folder with mode 0700."""
    port: int | None = None
    """On 127.0.0.1."""
    token: str | None = None
    """Sent as `Authorization: Bearer …`; TCP has no owner, so the token file's mode stands in for the socket's."""

    @property
    def where(self) -> str:
        """For messages; never shows the token."""
        return self.socket_path or f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Home:
    """One node's folders."""

    data: Path
    """Identity, swarm secret, settings, last plan."""
    runtime: Path
    """Lock, socket or token file: gone when the node is."""
    models: Path
    """Weights; may be shared by several homes."""
    settings: Path | None = None
    """Files that people write: config.toml, keymap.toml, themes; None: beside the data."""

    @classmethod
    def from_environment(cls, data_dir: str | None = None) -> Home:
        """The home that `PARALLAX_HOME`, `PARALLAX_MODELS` and `--data-dir` (which wins over the former) ask for."""
        chosen = data_dir or os.environ.get("PARALLAX_HOME")
        if chosen:
            root = Path(chosen).expanduser().absolute()
            data, runtime, models, settings = root, root / "run", root / "models", root
        else:
            data = Path(platformdirs.user_data_dir(APP, appauthor=False))
            session = os.environ.get("XDG_RUNTIME_DIR")
            runtime = Path(session) / APP if session else data / "run"
            models = Path(platformdirs.user_cache_dir(APP, appauthor=False)) / "models"
            settings = Path(platformdirs.user_config_dir(APP, appauthor=False))
        if elsewhere := os.environ.get("PARALLAX_MODELS"):
            models = Path(elsewhere).expanduser().absolute()
        return cls(data, runtime, models, settings)

    @property
    def config(self) -> Path:
        """The node's settings, in TOML."""
        return (self.settings or self.data) / "config.toml"

    def make_folders(self) -> None:
        """Make what every command that keeps something here needs.

        Raises:
            UsageError: that cannot be; says which folder and why.
        """
        try:
            private_folder(self.data)
            private_folder(self.runtime)
            for folder in {self.runtime, self.socket_path.parent}:
                if not folder.is_relative_to(self.data):
                    own_folder(folder)
            beside = self.runtime / f".written.{secrets.token_hex(4)}"  # a folder that is there may be read-only
            beside.touch(0o600)
            beside.unlink()
        except OSError as error:
            reason = "is not a folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
            where = str(error.filename or self.data)
            raise UsageError(
                f"{_short(where)}: {reason}; set PARALLAX_HOME or --data-dir to a folder that can be written"
            ) from error

    def remembered_name(self) -> str:
        """The name that this node was given at an earlier start; empty where it had none, or it cannot be read."""
        try:
            name = self.name_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""
        return name if name.isprintable() and len(name) <= 64 else ""

    @property
    def name_file(self) -> Path:
        """Holds the name that the node was given on its command line."""
        return self.data / "name"

    @property
    def machine_file(self) -> Path:
        """What was measured of this machine (`node.remembered_machine`); mode 0600."""
        return self.data / "machine.json"

    @property
    def owner_token_file(self) -> Path:
        """What programs must show on TCP to do what only the node's owner may; mode 0600, gone when the node is."""
        return self.runtime / "api.token"

    @property
    def lock(self) -> Path:
        return self.runtime / "node.lock"

    @property
    def control_file(self) -> Path:
        """Tells clients how the running node is reached; mode 0600, since it may hold the token."""
        return self.runtime / "control.json"

    @property
    def socket_path(self) -> Path:
        """Where the control socket lies: in a short private folder where the home's path is too long for one."""
        path = self.runtime / "control.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
            return path
        mark = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"{APP}-{_user_mark()}-{mark}" / "control.sock"

    def write_control(self, control: Control) -> None:
        """Tell clients how to reach this node."""
        fields = {"socket_path": control.socket_path, "port": control.port, "token": control.token}
        write_private(self.control_file, json.dumps(fields).encode())

    def read_control(self) -> Control:
        """How the node of this home is reached.

        Raises:
            NoNode: none has announced itself, or its announcement cannot be read.
        """
        try:
            fields = json.loads(self.control_file.read_bytes())
            control = Control(fields["socket_path"], fields["port"], fields["token"])
            folder = Path(control.socket_path).parent if control.socket_path else self.runtime
            # elsewhere than in the home a node may have died, and another user have come
            if folder.is_relative_to(self.data) or _foreign(folder) is None:
                return control
            raise NoNode(_short(str(folder)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NoNode(_short(str(self.control_file))) from error


def _short(path: str) -> str:
    """A path as a sentence can hold it."""
    return path if len(path) <= 160 else f"{path[:80]}…{path[-60:]}"


def _user_mark() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"
