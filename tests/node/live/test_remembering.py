"""What a node notes for its next start is what was served, never what another one has merely said."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from node.live.remembered import Remembered
from node.live.remembering import Remembering
from node.wire.models import ModelFacts, ModelRef
from node.wire.plans import Assignment, Plan
from node.wire.records import HeldRange
from tests.fakes.swarm import fake_node_id, open_fake_network

MODEL, EVIL = ModelRef("toy", "test", "toy"), ModelRef("evil", "hub:evil/model@0000", "0000")
FACTS = ModelFacts(4, 1, 1, 1, 8, 4, 251, 4096)
ADA, BOB = fake_node_id("ada"), fake_node_id("bob")
PLAN = Plan(7, ADA, MODEL, "float32", FACTS, (Assignment(ADA, 0, 2), Assignment(BOB, 2, 4)))


async def _noted_when_served(file: Path) -> None:
    in_force: list[Plan] = [PLAN]
    told: list[ModelRef] = []
    noted = trio.Event()

    async def served(model: ModelRef) -> None:
        await trio.lowlevel.checkpoint()
        told.append(model)
        noted.set()

    async with open_fake_network("ada", "bob") as network, trio.open_nursery() as nursery:
        ada, bob = network.swarms
        remembering = Remembering(Remembered(file), lambda: in_force[-1], ada.members, served)
        nursery.start_soon(remembering.run)

        async def nothing_is_noted() -> None:
            remembering.stir()
            await trio.testing.wait_all_tasks_blocked()
            assert Remembered(file).epoch == 0

        await nothing_is_noted()
        await ada.update(plan_epoch=7, held=(HeldRange(0, 2, "ready", 7),))
        await nothing_is_noted()
        await bob.update(plan_epoch=7, held=(HeldRange(2, 4, "loading", 7),))
        await nothing_is_noted()
        await bob.update(plan_epoch=6, held=(HeldRange(2, 4, "ready", 6),))  # of another plan, and so maybe model
        await nothing_is_noted()
        await bob.update(plan_epoch=7, held=(HeldRange(2, 4, "ready", 7),))
        remembering.stir()
        await noted.wait()
        assert (Remembered(file).model, Remembered(file).epoch) == (MODEL, 7)

        in_force.append(Plan(8, BOB, EVIL, "float32", FACTS, (Assignment(ADA, 0, 4),)))
        remembering.stir()
        await trio.testing.wait_all_tasks_blocked()
        assert (Remembered(file).model, Remembered(file).epoch) == (MODEL, 7)
        assert told == [MODEL]
        nursery.cancel_scope.cancel()


def test_a_plan_is_noted_once_every_layer_is_ready_under_it_and_one_that_is_not_served_never(tmp_path: Path) -> None:
    trio.run(_noted_when_served, tmp_path / "model.json")
