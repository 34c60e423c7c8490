"""What tests of several rooms share."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from node.loop_watch import LoopWatch
from node.models import DEFAULT_REF, prepare
from node.models.progress import ignore_progress
from node.swarm.libp2p_parts import use_parts

use_parts()  # whichever test imports libp2p first

# Machines that run this are shared and slow at times: how long an example takes says nothing about the code. Where
# CI is set, every run tries the same examples, and the search for new ones is left to people.
settings.register_profile(
    "shared machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    database=None,
)
settings.load_profile("shared machine")

DATA = Path(__file__).parent / "data"
STORIES = Path(__file__).parent / "stories"


def pytest_configure(config: pytest.Config) -> None:
    """One cache of models for all processes of a run: PARALLAX_MODELS where it is set, which spares a download."""
    if "PARALLAX_MODELS" not in os.environ:
        folder = tempfile.mkdtemp(prefix="parallax-test-models-")
        os.environ["PARALLAX_MODELS"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stories start first: they take longest."""
    items.sort(key=lambda item: STORIES not in item.path.parents)


class ByFile(LoadScopeScheduling):
    """Worker processes take files from one another; stories go one after the other, since each fills both cores."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return "stories" if file.startswith("tests/stories/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """The library has a mark for this, which has no effect with every pytest."""
    return ByFile(config, log)


HELD_MS = 50.0
"""Of a processor: so long a heartbeat or a token waits, and several times that on a slow machine."""


def _reference_s() -> float:
    """Processor time of the same little computation: more where other processes share the core and its caches."""
    begun_s = time.thread_time()
    sum(number * number for number in range(20_000))
    return time.thread_time() - begun_s


QUIET_REFERENCE_S = min(_reference_s() for _ in range(20))
"""The shortest that was seen on this machine."""


class CollectedTime:
    """Seconds of a processor that the garbage collector took: it comes when it likes, after other tests too."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._begun_s = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._begun_s = time.thread_time()
        else:
            self.total_s += time.thread_time() - self._begun_s


@pytest.fixture(autouse=True)
def nothing_holds_the_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test in which one step of a trio task takes long, unless it says why with `holds_the_loop`."""
    marker = request.node.get_closest_marker("holds_the_loop")
    if marker is not None:
        assert marker.args, "say why the event loop may be held"
        yield
        return
    held: list[str] = []
    collected = CollectedTime()
    plain_run = trio.run

    class Watch(LoopWatch):
        """Leaves out what the collector took."""

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self._collected_s = collected.total_s
            super().before_task_step(task)

        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            self._begun_s += collected.total_s - self._collected_s
            super().after_task_step(task)

    def watched_run(*arguments: Any, instruments: Sequence[trio.abc.Instrument] = (), **options: Any) -> Any:
        def note(what: str, took_s: float) -> None:
            slowed = max(1.0, _reference_s() / QUIET_REFERENCE_S)
            if took_s >= slowed * HELD_MS / 1e3:
                held.append(f"{took_s * 1e3:.0f} ms by {what}")

        watch = Watch(HELD_MS / 1e3, note)
        return plain_run(*arguments, instruments=[*instruments, watch], **options)

    monkeypatch.setattr(trio, "run", watched_run)
    gc.callbacks.append(collected)
    yield
    gc.callbacks.remove(collected)
    if held and (report := os.environ.get("PARALLAX_HELD_LOOPS")):
        with open(report, "a", encoding="utf-8") as file:
            file.writelines(f"{request.node.nodeid}: {each}\n" for each in held[:5])
        return
    assert not held, f"the event loop was held for more than {HELD_MS:.0f} ms: {'; '.join(held[:5])}"


@dataclass(frozen=True)
class Greedy:
    """What the default model says to one prompt: greedy decoding in fp32, equal in llama.cpp and transformers."""

    prompt: str
    text: str
    ids: list[int]
    out: list[int]
    out_text: str


@pytest.fixture(scope="session")
def greedy_oracle() -> list[Greedy]:
    """Prompts and their answers."""
    return [Greedy(**entry) for entry in json.loads((DATA / "smollm2_greedy_f32.json").read_text(encoding="utf-8"))]


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The cache that the whole run shares."""
    return Path(os.environ["PARALLAX_MODELS"])


@pytest.fixture(scope="session")
def default_model_folder(models_folder: Path) -> Path:
    """The embedded default model, fetched and converted once in a run."""
    return prepare(DEFAULT_REF, models_folder, None, ignore_progress)
