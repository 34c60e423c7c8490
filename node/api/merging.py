"""Several answers to one request as one stream. Knows nothing of what they say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TypeVar

import trio

from node.errors import RequestError

T = TypeVar("T")
Source = Callable[[], AbstractAsyncContextManager[AsyncGenerator[T, None]]]

WAITING_EVENTS = 64
"""Of all answers together: a client that reads slowly holds them back, as it would hold one."""


@asynccontextmanager
async def merged(sources: Sequence[Source[T]]) -> AsyncIterator[AsyncGenerator[tuple[int, T], None]]:
    """All that the sources give, each with its number. The block begins when the first of them has something.

    Raises:
        RequestError: one of them failed; the others end with it.
    """
    if len(sources) == 1:
        async with sources[0]() as events, aclosing(_numbered(events)) as numbered:
            yield numbered
        return
    failure: Exception | None = None
    send, receive = trio.open_memory_channel[tuple[int, T] | RequestError](WAITING_EVENTS)
    async with trio.open_nursery() as nursery:
        async with send:
            for number, source in enumerate(sources):
                nursery.start_soon(_run, number, source, send.clone())
        try:
            async with aclosing(_read(await receive.receive(), receive)) as events_of_all:
                yield events_of_all
        except Exception as error:  # raised again below: the nursery would put it into a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _run(number: int, source: Source[T], send: trio.MemorySendChannel[tuple[int, T] | RequestError]) -> None:
    async with send:
        try:
            async with source() as events:
                async for event in events:
                    await send.send((number, event))
        except RequestError as error:
            await send.send(error)


async def _numbered(events: AsyncGenerator[T, None]) -> AsyncGenerator[tuple[int, T], None]:
    async for event in events:
        yield 0, event


async def _read(
    first: tuple[int, T] | RequestError, receive: trio.MemoryReceiveChannel[tuple[int, T] | RequestError]
) -> AsyncGenerator[tuple[int, T], None]:
    if isinstance(first, RequestError):
        raise first
    yield first
    async for event in receive:
        if isinstance(event, RequestError):
            raise event
        yield event
