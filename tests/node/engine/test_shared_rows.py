"""Rows of large batches lie in memory that node and worker share; requests go out at once where the pipe takes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio
from trio.testing import memory_stream_one_way_pair

from node.engine import process
from node.engine.base import Batch, Slot
from node.engine.places import Places
from node.engine.process import open_engine
from node.engine.request_pipe import JOIN_BYTES, RequestPipe
from node.engine.shared_rows import PLACES, WORTH_BYTES, SharedRows, path_of
from node.wire.frames import BODY_LIMIT_BYTES
from tests.node.engine.driving import load_chain, pack_ids

has_shared_rows = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="rows go through the pipe here")


@has_shared_rows
def test_what_one_process_puts_the_other_reads() -> None:
    made = SharedRows.create()
    assert made is not None
    ours, descriptor = made
    theirs = SharedRows.open(path_of(descriptor))
    os.close(descriptor)
    assert theirs is not None
    ours.put_request(1, b"rows")
    assert bytes(theirs.request(1, 4)) == b"rows"
    theirs.put_reply(1, np.arange(3, dtype=np.int32).data)
    reply = ours.reply(1, 12)
    theirs.put_reply(1, bytes(12))
    assert np.frombuffer(reply, np.int32).tolist() == [0, 1, 2], "a copy: the place is another batch's by now"
    assert bytes(theirs.request(0, 4)) == bytes(4), "places do not overlap"


@has_shared_rows
@pytest.mark.parametrize(("place", "size_bytes"), [(-1, 4), (PLACES, 4), (0, -1), (0, BODY_LIMIT_BYTES + 1)])
def test_nothing_outside_the_memory_is_touched(place: int, size_bytes: int) -> None:
    made = SharedRows.create()
    assert made is not None
    os.close(made[1])
    with pytest.raises(ValueError, match="at place"):
        made[0].request(place, size_bytes)


def test_a_file_of_another_size_or_none_is_not_taken(tmp_path: Path) -> None:
    assert SharedRows.open(str(tmp_path / "absent")) is None
    (tmp_path / "small").write_bytes(b"x" * 4096)
    assert SharedRows.open(str(tmp_path / "small")) is None


@pytest.mark.parametrize("shared", [pytest.param(True, marks=has_shared_rows), False])
def test_large_batches_give_the_same_rows_either_way(
    shared: bool, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(process.SharedRows, "create", lambda: None)

    async def main() -> None:
        async with open_engine(threads=1, device="cpu") as engine:
            assert (engine._shared_rows is not None) == shared
            (part,) = await load_chain(engine, tiny_folder, [0, 3])
            width = part.stage.info.hidden_size
            count = 2 * WORTH_BYTES // (4 * width)
            ids = [1 + index % 7 for index in range(count)]
            results: dict[str, bytes] = {}

            async def run(name: str, chunk: int) -> None:
                await part.stage.open(name, 0, 3, None, count)
                rows = b""
                for at in range(0, count, chunk):
                    some = ids[at : at + chunk]
                    batch = Batch((Slot(name, at, len(some)),), pack_ids(some), None)
                    rows += bytes((await part.stage.run(batch)).data)
                results[name] = rows

            async with trio.open_nursery() as nursery:  # more than there are places
                for index in range(2 * PLACES):
                    nursery.start_soon(run, f"whole {index}", count)
            assert len({*results.values()}) == 1
            whole = np.frombuffer(results["whole 0"], np.float32).reshape(count, width)
            assert whole.nbytes >= WORTH_BYTES

            (behind,) = await load_chain(engine, tiny_folder, [3, 5])
            await behind.stage.open("large", 3, 5, None, count)
            large = await behind.stage.run(Batch((Slot("large", 0, count),), whole.data, "float32"))
            assert len(large.data) == whole.nbytes
            assert not large.slots[0].problem

    trio.run(main)


def test_places_are_taken_in_turn_and_given_back() -> None:
    async def main() -> None:
        places = Places(2)
        assert [await places.take(), await places.take()] == [0, 1]
        taken: list[int] = []

        async def take() -> None:
            taken.append(await places.take())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            assert not taken
            places.give_back(1)
        assert taken == [1]

    trio.run(main)


async def until_read(read: Callable[[], object], total: int, data: bytearray) -> None:
    while len(data) < total:
        part = await read()  # type: ignore[misc]
        assert part
        data += part


def test_what_the_pipe_does_not_take_at_once_follows_in_order() -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        source = trio.lowlevel.FdStream(reading)
        pipe = RequestPipe(trio.lowlevel.FdStream(writing))
        messages = [
            (b"%04d" % index, os.urandom(size)) for index, size in enumerate([10, 3 * JOIN_BYTES, 0, 100_000, 7])
        ]
        pipe.post(*messages[0])
        assert await source.receive_some(100) == b"".join(messages[0]), "before any task ran"
        for message in messages[1:]:
            pipe.post(*message)
        expected = b"".join(head + body for head, body in messages[1:])
        got = bytearray()
        async with trio.open_nursery() as nursery, source:
            nursery.start_soon(pipe.run)
            await until_read(source.receive_some, len(expected), got)
            pipe.post(b"last", b"")
            assert await source.receive_some(10) == b"last"
            nursery.cancel_scope.cancel()
        assert got == expected
        await pipe.aclose()

    trio.run(main)


def test_a_pipe_that_is_broken_is_nobodys_error() -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        pipe = RequestPipe(trio.lowlevel.FdStream(writing))
        pipe.post(b"head", b"")
        await pipe.run()
        sink, _ = memory_stream_one_way_pair()
        other = RequestPipe(sink)
        other.post(b"head", b"body")
        await other.aclose()
        other.post(b"more", b"")
        await other.run()

    trio.run(main)
