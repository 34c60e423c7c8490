"""Frames on their way out while the node that sends them ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from node.pipeline.outbox import Outbox
from node.wire.frames import Close
from tests.fakes.swarm import open_fake_network


@pytest.mark.parametrize("ticks", range(6))
def test_a_frame_that_is_posted_while_the_node_ends_is_dropped(ticks: int) -> None:
    async def run() -> None:
        async with open_fake_network("ada", "bob", "cy") as network, trio.open_nursery() as nursery:
            ada, bob, cy = network.swarms
            outbox = Outbox(ada, lambda arrival: None, lambda peer, why: None, lambda frame, why: None)
            await nursery.start(outbox.run)
            outbox.post(bob.node_id, Close("0" * 32, 0, ""))  # from now on a task of the outbox's ends with it
            try:
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    for _ in range(ticks):
                        await trio.lowlevel.checkpoint()
                outbox.post(cy.node_id, Close("0" * 32, 0, ""))

    trio.run(run)
