"""Models on the Hugging Face hub, through `huggingface_hub`: which commit, and its files. Knows no cache and no lock.

Importing the library takes a while, so it is imported inside functions, and mostly in the child process that fetches.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import FetchFailed, ModelNotFound, WrongHash
from node.models.disk import sha256_of
from node.models.progress import Report, bytes_under, growth_reported
from node.wire.models import ModelRef

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ANSWER_S = 30.0
_HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?"
)
_SOURCE = re.compile(r"hub:(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@(?P<commit>[0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit."""

    name: str
    size: int
    sha256: str | None
    """Known for large files only."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository at one commit."""

    name: str
    commit: str


def is_hub_id(choice: str) -> bool:
    """Whether `choice` looks like `org/name` or `org/name@revision`."""
    return _HUB_ID.fullmatch(choice) is not None


def repository_of(ref: ModelRef) -> Repository:
    """The repository that a hub model's ref names.

    Raises:
        ModelNotFound: the ref contradicts itself (it may come from a peer).
    """
    match = _SOURCE.fullmatch(ref.source)
    if match is None or match["commit"] != ref.digest:
        raise ModelNotFound(ref.name, f"{ref.source!r} names no commit of a hub model; choose it as org/name")
    return Repository(match["repository"], match["commit"])


def resolve(choice: str) -> ModelRef:
    """The exact model that `org/name` or `org/name@revision` is now.

    Raises:
        ModelNotFound: the hub has no such model or revision.
        FetchFailed: the hub does not answer or does not let us in.
    """
    match = _HUB_ID.fullmatch(choice)
    assert match is not None
    repository = match["repository"]
    with _named_errors(choice):
        commit = _api().model_info(repository, revision=match["revision"], timeout=ANSWER_S).sha
    if commit is None or re.fullmatch("[0-9a-f]{40}", commit) is None:
        raise FetchFailed(choice, "the hub named no commit; check HF_ENDPOINT")
    return ModelRef(repository, f"hub:{repository}@{commit}", commit)


def list_files(repository: Repository) -> dict[str, RemoteFile]:
    """All files of the repository by name.

    Raises:
        ModelNotFound, FetchFailed: as in `resolve`.
    """
    with _named_errors(repository.name):
        info = _api().model_info(repository.name, revision=repository.commit, files_metadata=True, timeout=ANSWER_S)
    return {
        file.rfilename: RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    }


def fetch_file(
    repository: Repository, file: RemoteFile, into: Path, report: Report, *, done_bytes: int, total_bytes: int
) -> None:
    """Download one file into the folder `into`, going on where an earlier attempt stopped.

    Args:
        done_bytes, total_bytes: of the whole task, of which this file is a part.

    Raises:
        ModelNotFound, FetchFailed: as in `resolve`.
        WrongHash: not the bytes that the hub promised; the file is removed.
    """
    from huggingface_hub import hf_hub_download

    report("fetch", done_bytes, total_bytes, file.name)
    already = bytes_under(into, "*.incomplete")

    def grown() -> int:
        return min(max(bytes_under(into, "*.incomplete") - already, 0), file.size)

    with (
        _named_errors(repository.name),
        growth_reported(grown, total_bytes, file.name, report, before_bytes=done_bytes),
    ):
        hf_hub_download(repository.name, file.name, revision=repository.commit, local_dir=into, endpoint=_endpoint())
    path = into / file.name
    if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
        path.unlink()
        raise WrongHash(f"{repository.name}: {file.name}", file.sha256, found)
    if path.stat().st_size != file.size:
        path.unlink()
        raise FetchFailed(
            repository.name, f"{file.name} has not the {file.size} bytes that the hub promised; try again"
        )
    report("fetch", done_bytes + file.size, total_bytes, file.name)


def _api() -> HfApi:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # the terminal is not its own
    return HfApi(endpoint=_endpoint(), library_name="parallax")


def _endpoint() -> str | None:
    """The mirror that is set now, where one is: the library itself looks only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _named_errors(model: str) -> Iterator[None]:
    """The library's errors as ours."""
    import httpx
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        reason = "its owner asks for consent; give it on the model's page and set HF_TOKEN"
        raise FetchFailed(model, reason) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        what_now = "check the name and revision; a private model needs HF_TOKEN"
        raise ModelNotFound(model, f"the hub does not have it: {what_now}") from error
    except LocalEntryNotFoundError as error:
        raise FetchFailed(model, _offline(error.__cause__ or error)) from error
    except EntryNotFoundError as error:
        raise FetchFailed(model, "the hub lists a file that it does not have; try again later") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise FetchFailed(model, f"the hub answered with {status}; try again later") from error
    except (httpx.HTTPError, ConnectionError) as error:
        raise FetchFailed(model, _offline(error)) from error


def _offline(error: BaseException) -> str:
    return (
        f"the hub cannot be reached ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
        "check the network, or bring the model along with `parallax models import FOLDER`"
    )
