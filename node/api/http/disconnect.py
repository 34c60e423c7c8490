"""Work for a client that may go away: the work ends with the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from starlette.types import Receive


async def until_disconnect(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, but give it up when the client goes away. The request's body must have been read.

    Raises what `work` raises, as it was.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await work()
        except Exception as error:  # raised again below: the nursery would put it into a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
