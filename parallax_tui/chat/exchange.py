"""One question and its answer over HTTP, as pieces. Every way to fail is a `Refused` at the end, never an exception.

Closing the generator, or cancelling the task that reads it, closes the connection and so stops the generation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from node.errors import NoNode
from node.home import Control
from parallax_tui.chat.answers import Answered, Piece, Refused, decode_chunk
from parallax_tui.client.node_client import NodeClient
from parallax_tui.refusal import NodeRefused

BROKE_OFF = "the node went away during the answer; ask again when it is back"


async def exchange(
    control: Callable[[], Control], model: str, messages: Sequence[Mapping[str, str]], **settings: object
) -> AsyncGenerator[Piece | Answered | Refused, None]:
    """The answer as it comes. `settings` are further fields of the request, such as `max_tokens`."""
    begun = ended = False
    try:
        async with NodeClient(control()) as client, aclosing(client.chat(model, messages, **settings)) as chunks:
            async for data in chunks:
                begun = True
                for part in decode_chunk(data):
                    yield part
                    if isinstance(part, Refused):
                        return
                    ended = ended or (isinstance(part, Answered) and bool(part.reason))
    except NoNode as problem:
        if not ended:
            yield Refused(BROKE_OFF if begun else str(problem))
    except NodeRefused as problem:
        yield Refused(str(problem))
    else:
        if not ended:
            yield Refused(BROKE_OFF)
