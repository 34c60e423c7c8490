"""Bodies: how large, how many at once, how long, and in which form."""

from __future__ import annotations

import gzip
import threading
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from starlette.types import Message

from node.api.http.body import BODY_S, SMALL_BYTES, Bodies, expect_json, require_json
from node.errors import BadRequest, BodyTooLarge, Busy, UnknownEncoding

MIB = 1024 * 1024


def scope(**headers: str) -> dict[str, object]:
    return {"type": "http", "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]}


def parts_of(*parts: bytes) -> Callable[[], Awaitable[Message]]:
    left = list(parts)

    async def receive() -> Message:
        if not left:
            await trio.sleep_forever()
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left) or part != b""}

    return receive


def run(story: Callable[[], Awaitable[None]]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


def test_bodies_together_take_a_bounded_amount_of_memory_and_give_it_back() -> None:
    async def story() -> None:
        bodies = Bodies(most_bytes=3 * MIB)
        with bodies.room() as first:
            await first.read(scope(), parts_of(b"x" * MIB, b"x" * MIB, b""), 8 * MIB)
            assert bodies.held_bytes == 2 * MIB
            with pytest.raises(Busy) as refused, bodies.room() as second:
                await second.read(scope(), parts_of(b"x" * MIB, b"x" * MIB, b""), 8 * MIB)
            assert refused.value.status == 503
            assert bodies.held_bytes == 2 * MIB, "what was refused is let go"
            with bodies.room() as small:
                assert len(await small.read(scope(), parts_of(b"x" * SMALL_BYTES, b""), 8 * MIB)) == SMALL_BYTES
        assert bodies.held_bytes == 0

    run(story)


def test_small_requests_are_taken_however_full_it_is() -> None:
    async def story() -> None:
        bodies = Bodies(most_bytes=0)
        with bodies.room() as room:
            assert await room.read(scope(), parts_of(b"{}", b""), MIB) == b"{}"

    run(story)


@pytest.mark.parametrize("told", [{"content_length": str(2 * MIB)}, {"content_length": "9" * 18}, {}])
def test_a_body_that_is_too_large_is_refused_before_it_is_in_memory(told: dict[str, str]) -> None:
    async def story() -> None:
        bodies = Bodies()
        with pytest.raises(BodyTooLarge, match=str(MIB)) as refused, bodies.room() as room:
            await room.read(scope(**told), parts_of(*[b"x" * 65536] * 40, b""), MIB)
        assert refused.value.status == 413

    run(story)


@pytest.mark.parametrize("encoding", ["br", "deflate", "BR", "gzip, gzip"])
def test_a_body_compressed_as_we_cannot_read_it_is_refused_with_a_sentence(encoding: str) -> None:
    async def story() -> None:
        said = f"content-encoding is '{encoding.lower()}'"
        with pytest.raises(UnknownEncoding, match=said) as refused, Bodies().room() as room:
            await room.read(scope(content_encoding=encoding), parts_of(b"\x1f\x8b", b""), MIB)
        assert refused.value.status == 415
        with Bodies().room() as room:
            assert await room.read(scope(content_encoding="identity"), parts_of(b"{}", b""), MIB) == b"{}"

    run(story)


def test_a_body_that_stalls_ends_its_request() -> None:
    async def story() -> None:
        bodies = Bodies()
        before_s = trio.current_time()
        with pytest.raises(BadRequest, match="did not arrive"), bodies.room() as room:
            await room.read(scope(content_length=str(MIB)), parts_of(b"x" * 500_000), MIB)
        assert trio.current_time() - before_s == pytest.approx(BODY_S)
        assert bodies.held_bytes == 0

    run(story)


def test_large_bodies_are_taken_apart_in_threads_and_few_at_once() -> None:
    threads: set[int] = set()
    most = at_once = 0
    lock = threading.Lock()

    def parse(body: bytes) -> int:
        nonlocal most, at_once
        with lock:
            at_once += 1
            most = max(most, at_once)
            threads.add(threading.get_ident())
        with lock:
            at_once -= 1
        return len(body)

    async def main() -> None:
        bodies = Bodies()
        assert await bodies.decoded(parse, b"x") == 1
        assert threads == {threading.get_ident()}
        threads.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(bodies.decoded, parse, b"x" * (SMALL_BYTES + 1))
        assert threading.get_ident() not in threads
        assert most <= 2

    trio.run(main)


def compressed(encoding: str, body: bytes) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body)
    return pytest.importorskip("zstandard").ZstdCompressor().compress(body)  # type: ignore[no-any-return]


ENCODINGS = ["gzip", "zstd"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_compressed_body_is_read(encoding: str) -> None:
    sent = compressed(encoding, b"x" * 300_000)

    async def story() -> None:
        bodies = Bodies()
        with bodies.room() as room:
            assert await room.read(scope(content_encoding=encoding), parts_of(sent, b""), MIB) == b"x" * 300_000
            assert bodies.held_bytes == 300_000, "what it is counts, not what came"
        assert bodies.held_bytes == 0

    run(story)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_few_bytes_that_stand_for_many_are_refused_before_they_are_in_memory(encoding: str) -> None:
    bomb = compressed(encoding, bytes(64 * MIB))
    assert len(bomb) < 100_000

    async def story() -> None:
        bodies = Bodies()
        tracemalloc.start()
        try:
            with pytest.raises(BodyTooLarge), bodies.room() as room:
                await room.read(scope(content_encoding=encoding), parts_of(bomb, b""), MIB)
            assert tracemalloc.get_traced_memory()[1] < 8 * MIB
        finally:
            tracemalloc.stop()
        assert bodies.held_bytes == 0

    run(story)


def test_a_compressed_body_finds_no_room_where_there_is_none() -> None:
    sent = compressed("gzip", b"{}")

    async def story() -> None:
        with pytest.raises(Busy), Bodies(most_bytes=MIB // 2).room() as room:
            await room.read(scope(content_encoding="gzip"), parts_of(sent, b""), MIB)

    run(story)


@pytest.mark.parametrize("body", [b"", b"{}", gzip.compress(b"x" * 9000)[:-9], b"\x1f\x8b" + bytes(30)])
def test_what_is_not_compressed_as_it_says_is_refused(body: bytes) -> None:
    async def story() -> None:
        with pytest.raises(BadRequest, match="gzip"), Bodies().room() as room:
            await room.read(scope(content_encoding="gzip"), parts_of(body, b""), MIB)

    run(story)


def test_json_needs_no_content_type_unless_a_browser_sends_it() -> None:
    form = "application/x-www-form-urlencoded"
    for taken in ({}, {"content_type": form}, {"content_type": "application/json; charset=utf-8", "origin": "x"}):
        expect_json(scope(**taken))
    for refused in (
        {"content_type": "text/plain"},
        {"content_type": form, "origin": "http://localhost"},
        {"content_type": form, "sec_fetch_site": "same-site"},
        {"content_type": "multipart/form-data"},
        {"referer": "http://evil.example"},
    ):
        with pytest.raises(BadRequest, match="application/json"):
            expect_json(scope(**refused))
    with pytest.raises(BadRequest, match="application/json"):
        require_json(scope(content_type=form))
