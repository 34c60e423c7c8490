"""Follows one node for as long as the program runs: snapshot, then numbered events, and again after every break.

After a break the state is always read anew: a node that was restarted numbers its events from one again, so going on
from an old number could mix two lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from node.errors import NoNode
from node.home import Control
from parallax_tui.client.node_client import EventsGone, NodeClient
from parallax_tui.refusal import NodeRefused
from parallax_tui.state.live import Live

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 2.0


async def follow(control: Callable[[], Control], first: Live | None = None) -> AsyncGenerator[Live, None]:
    """Every new picture of the node, without end. Never raises for a node that is away: that is a picture too.

    `control` is asked at each attempt, since a restarted node may be reached in another way.
    """
    live = first or Live()
    retry_s = FIRST_RETRY_S
    while True:
        try:
            async with NodeClient(control()) as client:
                state = await client.state()
                live = live.at(state)
                yield live
                retry_s = FIRST_RETRY_S
                async with aclosing(client.events(state.seq)) as events:
                    async for numbered in events:
                        if live.state is not None and numbered.seq > live.state.seq + 1:
                            break  # some were lost: read the state again
                        live = live.after(numbered)
                        yield live
                    else:
                        raise NoNode(client.where)
        except EventsGone:
            await asyncio.sleep(FIRST_RETRY_S)  # a node that never keeps them must not make us spin
            continue
        except (NoNode, NodeRefused) as problem:
            live = live.lost(str(problem))
            yield live
        else:
            continue
        await asyncio.sleep(retry_s)
        retry_s = min(LONGEST_RETRY_S, retry_s * 2)
