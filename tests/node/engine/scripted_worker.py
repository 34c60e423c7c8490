"""A worker without a process, on trio's clock: it speaks the pipe's protocol, and does as badly as it is told to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio.testing import memory_stream_one_way_pair

from node.engine.base import BackendInfo, Slot, SlotResult, StageInfo
from node.engine.messages import (
    PREFIX,
    Done,
    Load,
    Loaded,
    LoadGoesOn,
    Ping,
    Pong,
    Ran,
    Ready,
    Reply,
    Request,
    Run,
    Start,
    pack_head,
    text_of,
    unpack_prefix,
    unpack_request,
)
from node.wire.records import Hardware

HARDWARE = Hardware("cpu", "toy", 1 << 30, 1e9, 1e9, 1)
BACKENDS = (BackendInfo("torch", "toy 1", ("float32",)),)
LAYER_MS = 1.0


class ScriptedWorker:
    """A `spawning.WorkerProcess`. Set its attributes to make it slow, silent or stuck."""

    def __init__(self) -> None:
        self.pid = 4711
        self.returncode: int | None = None
        self.stdin, self._requests = memory_stream_one_way_pair()
        self._replies, self.stdout = memory_stream_one_way_pair()
        self._words, self.stderr = memory_stream_one_way_pair()
        self._over = trio.Event()
        self.step_s = 0.01
        """Of a batch; infinite for one that never ends."""
        self.answers_pings = True
        self.piece_s, self.pieces = 1.0, 3
        """Of a load: how long each takes, and how many there are."""
        self.dies_when_asked = True
        """To leave by the end of its input."""
        self.batches: list[tuple[Slot, ...]] = []
        self.pings = 0
        self.released = False

    # --- what a process is ------------------------------------------------------------------------------------------

    async def spawn(self, nursery: trio.Nursery) -> ScriptedWorker:
        nursery.start_soon(self._serve)
        return self

    async def wait(self) -> object:
        await self._over.wait()
        return self.returncode

    def kill(self) -> None:
        self._exit(-9)

    def release(self) -> None:
        self.released = True

    async def say(self, words: bytes) -> None:
        """On its stderr."""
        await self._words.send_all(words)

    def _exit(self, code: int) -> None:
        if self.returncode is not None:
            return
        self.returncode = code
        for stream in (self._replies, self._words):
            stream.close()
        self._over.set()

    # --- what a worker does -----------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        to_compute, requests = trio.open_memory_channel[Request](100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_over, self._compute, requests)
            nursery.start_soon(self._until_over, self._read, to_compute)

    async def _until_over(self, work: Callable[..., Awaitable[None]], channel: object) -> None:
        with trio.CancelScope() as life:
            async with trio.open_nursery() as nursery:

                async def end() -> None:
                    await self._over.wait()
                    life.cancel()

                nursery.start_soon(end)
                await work(channel)

    async def _read(self, to_compute: trio.MemorySendChannel[Request]) -> None:
        while prefix := await self._exactly(PREFIX.size):
            header_bytes, body_bytes = unpack_prefix(prefix)
            request = unpack_request(await self._exactly(header_bytes))
            await self._exactly(body_bytes)
            if not isinstance(request, Ping):
                await to_compute.send(request)
            elif self.answers_pings:
                self.pings += 1
                await self._send(Pong(request.number, "a step of the script", 1.5))
        if self.dies_when_asked:
            self._exit(0)
        await trio.sleep_forever()

    async def _compute(self, requests: trio.MemoryReceiveChannel[Request]) -> None:
        async for request in requests:
            match request:
                case Start(number):
                    await self._send(Ready(number, HARDWARE, BACKENDS))
                case Load(number, _, spec):
                    for _ in range(self.pieces):
                        await trio.sleep(self.piece_s)
                        await self._send(LoadGoesOn(number))
                    info = StageInfo(1, 1, 1000, 0.0, 1, "float32", LAYER_MS, None)
                    await self._send(Loaded(number, info))
                    assert spec.end
                case Run(number, slots=slots):
                    self.batches.append(slots)
                    await trio.sleep(self.step_s)
                    await self._send(Ran(number, tuple(SlotResult() for _ in slots), 1e3 * self.step_s, 0.0, 7))
                case _:
                    assert text_of(request)
                    await self._send(Done(request.number))

    async def _exactly(self, wanted: int) -> bytes:
        data = b""
        while len(data) < wanted:
            part = await self._requests.receive_some(wanted - len(data))
            if not part:
                return b""
            data += part
        return data

    async def _send(self, reply: Reply) -> None:
        await self._replies.send_all(pack_head(reply, 0))
