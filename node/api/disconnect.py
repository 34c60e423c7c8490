"""Work for a client that may go away: the work ends with the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from starlette.types import Receive


async def until_disconnect(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, but give it up when the client goes away. The request's body must have been read."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await work()
        nursery.cancel_scope.cancel()
