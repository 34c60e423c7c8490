"""A large tensor is copied in pieces, and a load gets on beside a stage that is never idle."""

from __future__ import annotations

import queue
from collections.abc import Generator
from io import FileIO
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from node.engine.backend import BackendLost
from node.engine.base import BackendInfo, Batch, BatchResult, SlotResult, StageInfo, StageSpec
from node.engine.messages import Load, Run
from node.engine.torch.copying import LEAST_PIECE_BYTES, MOST_PIECE_BYTES, PIECE_S, PieceSize, copied
from node.engine.worker import EXIT_BACKEND_LOST, Activity, Inbox, Replies, Worker
from node.wire.frames import Sampling
from node.wire.records import Hardware
from tests.node.engine.driving import CPU, batch_of


@pytest.mark.parametrize("bytes_per_s", [2e7, 1e8, 2e9])
def test_a_piece_takes_about_as_long_on_a_slow_disk_as_on_a_fast_one(bytes_per_s: float) -> None:
    size = PieceSize()
    for _ in range(10):
        size.took(size.bytes / bytes_per_s)
    assert 0.5 * PIECE_S <= size.bytes / bytes_per_s <= 1.1 * PIECE_S


def test_pieces_have_bounds_and_one_that_was_disturbed_changes_little() -> None:
    size = PieceSize()
    for _ in range(30):
        size.took(60.0)
    assert size.bytes == LEAST_PIECE_BYTES
    for _ in range(30):
        size.took(0.0)
    assert size.bytes == MOST_PIECE_BYTES
    size.took(60.0)
    assert size.bytes == MOST_PIECE_BYTES / 2


def test_a_large_tensor_is_copied_in_many_pieces() -> None:
    size = PieceSize()
    for _ in range(30):
        size.took(60.0)
    source = torch.randn(8 * LEAST_PIECE_BYTES // 4)
    progress = copied(source, torch.float32, CPU, size)
    next(progress)
    size.took(60.0)  # whatever this machine's memory can do
    assert sum(1 for _ in progress) >= 2


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5, 7), (3_000_001,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_is_what_the_library_would_give_and_its_own(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    source = torch.randn(shape)
    progress = copied(source, dtype, CPU, PieceSize())
    while True:
        try:
            next(progress)
        except StopIteration as finished:
            copy = finished.value
            break
    assert torch.equal(copy, source.to(dtype))
    assert copy.dtype == dtype
    assert copy.data_ptr() != source.data_ptr() or source.numel() == 0


def test_a_tensor_that_lies_otherwise_in_memory_is_copied_too() -> None:
    source = torch.arange(12.0).view(3, 4).t()
    progress = copied(source, torch.float32, CPU, PieceSize())
    with pytest.raises(StopIteration) as finished:
        next(progress)
    assert torch.equal(finished.value.value, source)


class BusyStage:
    """A `backend.LoadedStage` that does nothing, and asks for more of it at once."""

    info = StageInfo(1, 1, 1000, 0.0, 1, "float32")

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.batches = 0

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None: ...

    def run(self, batch: Batch) -> BatchResult:
        self.batches += 1
        self._inbox.put((Run(100 + self.batches, 1, batch.slots, None), batch.data))
        return BatchResult(b"", tuple(SlotResult() for _ in batch.slots), 0.0)

    def rewind(self, sequence: str, position: int) -> None: ...

    def close(self, sequence: str) -> None: ...

    def drop(self) -> None: ...


class BusyBackend:
    """A `backend.Backend` whose first stage is there at once, and whose second takes some pieces."""

    infos = (BackendInfo("torch", "toy 1", ("float32",)),)

    def __init__(self, inbox: Inbox) -> None:
        self.stage = BusyStage(inbox)
        self.pieces = 0

    def measure(self) -> Hardware:
        return Hardware("cpu", "toy", 1 << 30, 1e9, 1e9, 1)

    def load(self, spec: StageSpec) -> Generator[None, None, BusyStage]:
        for _ in range(0 if spec.start == 0 else 5):
            self.pieces += 1
            yield
        return self.stage

    def set_threads(self, threads: int) -> None: ...


def test_a_load_gets_on_while_batches_lie_ready_all_the_time(tmp_path: Path) -> None:
    inbox: Inbox = queue.SimpleQueue()
    backend = BusyBackend(inbox)
    with FileIO(tmp_path / "out", "w") as out:
        worker = Worker(inbox, Replies(out), Activity(), backend)
        inbox.put((Load(1, 1, StageSpec("toy", 0, 1, "float32", 1)), b""))
        worker.serve_one()
        worker.serve_one()
        assert worker.loads == 0
        inbox.put((Load(2, 2, StageSpec("toy", 1, 2, "float32", 1)), b""))
        batch = batch_of(("s", 0, [1], "nothing"))
        inbox.put((Run(3, 1, batch.slots, None), batch.data))
        worker.serve_one()
        while worker.loads:
            worker.serve_one()
    assert backend.pieces == 5
    assert backend.stage.batches > 2 * backend.pieces, "and did not hold the stage up"


def test_a_worker_whose_backend_computes_nothing_any_more_ends_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Lost(BusyStage):
        def run(self, batch: Batch) -> BatchResult:
            raise BackendLost("CUDA error: an illegal memory access")

    def ended(status: int) -> NoReturn:
        raise SystemExit(status)

    inbox: Inbox = queue.SimpleQueue()
    backend = BusyBackend(inbox)
    backend.stage = Lost(inbox)
    monkeypatch.setattr("node.engine.worker.os._exit", ended)
    with FileIO(tmp_path / "out", "w") as out:
        worker = Worker(inbox, Replies(out), Activity(), backend)
        inbox.put((Load(1, 1, StageSpec("toy", 0, 1, "float32", 1)), b""))
        worker.serve_one()
        worker.serve_one()
        batch = batch_of(("s", 0, [1], "nothing"))
        inbox.put((Run(3, 1, batch.slots, None), batch.data))
        with pytest.raises(SystemExit, match=str(EXIT_BACKEND_LOST)):
            worker.serve_one()
    assert "nothing can be computed any more: CUDA error" in capfd.readouterr().err
