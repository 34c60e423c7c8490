"""Watching pip at work: its folders come and go under our eyes."""

from __future__ import annotations

import threading
from pathlib import Path

from node.models.progress import bytes_under, sizes_under


def test_sizes_are_counted_by_pattern(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.whl").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "two.whl").write_bytes(b"123")
    (tmp_path / "a" / "b" / "note.txt").write_bytes(b"1")
    assert sorted(sizes_under(tmp_path, "*.whl")) == [3, 5]
    assert bytes_under(tmp_path, "*") == 9
    assert sizes_under(tmp_path / "absent", "*") == []


def test_folders_that_vanish_during_the_walk_count_nothing(tmp_path: Path) -> None:
    ended = threading.Event()

    def come_and_go() -> None:
        for number in range(3000):
            folder = tmp_path / f"pip-unpack-{number % 7}"
            folder.mkdir()
            (folder / "x.whl").write_bytes(b"1")
            (folder / "x.whl").unlink()
            folder.rmdir()
        ended.set()

    worker = threading.Thread(target=come_and_go)
    worker.start()
    while not ended.is_set():
        assert sum(sizes_under(tmp_path, "*.whl")) <= 7
    worker.join()
