"""A worker that hangs is seen, killed and told; one that is only slow is not. Scripted workers on a mock clock."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from node.engine.base import BATCHES_IN_FLIGHT, Stage, StageInfo, StageSpec
from node.engine.patience import (
    BESIDE_A_LOAD_S,
    LOAD_PROGRESS_S,
    PING_EVERY_S,
    PING_S,
    STEP_FACTOR,
    STEP_LEAST_S,
    StepTimes,
)
from node.engine.process import KILL_S, LOGGED_LINES, EngineProcess, open_engine
from node.errors import EngineError, WorkerDied, WorkerHung
from tests.node.engine.driving import batch_of
from tests.node.engine.scripted_worker import LAYER_MS, ScriptedWorker

LAYERS = 10
SPEC = StageSpec("toy", 0, LAYERS, "float32", 1 << 20)
ONE_ROW = batch_of(("s", 0, [1], "nothing"))
SLACK_S = 2.0
"""The second look, and the time between two looks."""


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


@asynccontextmanager
async def engine_of(worker: ScriptedWorker) -> AsyncIterator[EngineProcess]:
    async with trio.open_nursery() as nursery:
        async with open_engine(threads=1, spawn=lambda: worker.spawn(nursery)) as engine:
            yield engine
        nursery.cancel_scope.cancel()


async def loaded(engine: EngineProcess) -> Stage:
    stage = await engine.load(SPEC)
    await stage.open("s", 0, LAYERS, None, 100)
    return stage


def test_a_step_that_never_ends_is_given_up_after_the_least_patience() -> None:
    """The reading thread still answers: a driver that dead-locks holds up the computing thread alone."""

    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            worker.step_s = math.inf
            started_s = trio.current_time()
            with pytest.raises(WorkerHung, match="a batch of 1 row of 1 sequence") as hung:
                await stage.run(ONE_ROW)
            assert STEP_LEAST_S <= trio.current_time() - started_s <= STEP_LEAST_S + SLACK_S
            assert "it last said: a step of the script, for 1.5 s" in hung.value.running
            assert hung.value.waited_s >= STEP_LEAST_S
            assert hung.value.code == -9
            assert engine.died.is_set()
            assert isinstance(engine.death, WorkerHung)
            await stage.close("s")
            await stage.drop()
            with pytest.raises(WorkerHung):
                await stage.run(ONE_ROW)
        assert worker.released

    run(main)


def test_slow_steps_are_no_hang_and_what_a_stage_shows_is_what_is_expected_of_it() -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            worker.step_s = 4.9  # unseen before: within the least patience
            for _ in range(10):
                await stage.run(ONE_ROW)
            worker.step_s = 0.9 * STEP_FACTOR * 4.9  # now it is known to be slow
            await stage.run(ONE_ROW)
            assert not engine.died.is_set()

    run(main)


def test_many_rows_may_take_longer_and_steps_that_wait_for_another_are_not_late() -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            rows = 100
            allowed_s = STEP_FACTOR * rows * LAYERS * LAYER_MS / 1e3
            worker.step_s = 0.9 * allowed_s
            assert worker.step_s > 2 * STEP_LEAST_S
            chunks = [batch_of((f"s{number}", 0, [1] * rows, "nothing")) for number in range(5)]
            async with trio.open_nursery() as nursery:
                for chunk in chunks:
                    nursery.start_soon(stage.run, chunk)
            assert not engine.died.is_set()
            assert worker.pings > 0, "it was asked meanwhile"

    run(main)


def test_no_more_than_two_batches_are_on_their_way_and_they_run_in_the_order_of_the_calls() -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            worker.step_s = 1.0
            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(stage.run, batch_of((f"s{number}", 0, [1], "nothing")))
                    await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(0.5)
                assert len(engine.under_way) == BATCHES_IN_FLIGHT
            assert [slots[0].sequence for slots in worker.batches] == [f"s{number}" for number in range(6)]

    run(main)


def test_a_batch_that_is_refused_for_its_size_takes_no_place() -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            for _ in range(2 * BATCHES_IN_FLIGHT):
                with pytest.raises(EngineError, match="shorter prefill chunks"):
                    await stage.run(batch_of(*((f"{number:0256}", 0, [1], "nothing") for number in range(2000))))
            await stage.run(ONE_ROW)

    run(main)


@pytest.mark.parametrize("at_work", [True, False])
def test_a_worker_that_answers_no_ping_is_given_up_at_work_and_idle(at_work: bool) -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            worker.answers_pings = False
            worker.step_s = math.inf
            started_s = trio.current_time()
            if at_work:  # a long batch, with hours of patience of its own
                with pytest.raises(WorkerHung, match="answered no ping"):
                    await stage.run(batch_of(("s", 0, [1] * 8000, "nothing")))
            await engine.died.wait()
            assert trio.current_time() - started_s <= PING_EVERY_S + PING_S + SLACK_S
            assert isinstance(engine.death, WorkerHung)
            assert ("a batch of 8000 rows" if at_work else "idle") in engine.death.running

    run(main)


def test_an_idle_worker_is_asked_now_and_then_and_a_busy_one_is_not() -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            worker.pings = 0
            for _ in range(100):
                await stage.run(ONE_ROW)
                await trio.sleep(0.5)
            assert worker.pings == 0
            await trio.sleep(60)
            assert 60 / PING_EVERY_S / 2 <= worker.pings <= 60 / PING_EVERY_S
            assert not engine.died.is_set()

    run(main)


def test_a_slow_disk_is_no_hang_and_a_load_that_does_not_go_on_is() -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        worker.piece_s, worker.pieces = 0.9 * LOAD_PROGRESS_S, 20
        async with engine_of(worker) as engine:
            await engine.load(SPEC)
            worker.piece_s = math.inf
            started_s = trio.current_time()
            with pytest.raises(WorkerHung, match=r"loading layers 0–9, which did not go on"):
                await engine.load(SPEC)
            assert LOAD_PROGRESS_S <= trio.current_time() - started_s <= LOAD_PROGRESS_S + SLACK_S

    run(main)


def test_a_step_that_waits_for_a_piece_of_a_load_has_more_patience() -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            worker.piece_s, worker.pieces = 0.9 * BESIDE_A_LOAD_S, 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.load, SPEC)
                await trio.testing.wait_all_tasks_blocked()
                await stage.run(ONE_ROW)
            assert not engine.died.is_set()

    run(main)


def test_a_worker_that_does_not_leave_is_killed_and_one_that_cannot_be_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = ScriptedWorker()
        worker.dies_when_asked = False
        async with engine_of(worker):
            pass
        assert worker.returncode == -9

        class Unkillable(ScriptedWorker):
            def kill(self) -> None:
                pass

        worker = Unkillable()
        worker.dies_when_asked = False
        async with engine_of(worker) as engine:
            stage = await loaded(engine)
            worker.step_s = math.inf
            with pytest.raises(WorkerHung):
                await stage.run(ONE_ROW)
            assert trio.current_time() < STEP_LEAST_S + KILL_S + 30
        assert "cannot be ended" in caplog.text

    run(main)


def test_what_a_worker_says_is_in_the_log_printable_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        worker = ScriptedWorker()
        async with engine_of(worker) as engine:
            await worker.say(b"Traceback (most recent call last):\nKeyError: \x1b[2Kbad\n")
            for number in range(5 * LOGGED_LINES):
                await worker.say(b"flood %d\n" % number)
            await trio.sleep(60)
            await worker.say(b"the very last\n")
            worker.kill()
            with pytest.raises(WorkerDied, match="its last words: the very last"):
                await engine.set_threads(2)
        messages = [record.message for record in caplog.records]
        assert "engine worker: KeyError:  [2Kbad" in messages
        assert sum("flood" in message for message in messages) < LOGGED_LINES
        assert any("lines left out" in message for message in messages)
        assert any("SIGKILL" in message and "the very last" in message for message in messages)

    run(main)


def test_a_worker_that_leaves_as_it_is_told_to_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with engine_of(ScriptedWorker()):
            await trio.sleep(100)

    run(main)
    assert caplog.records == []


# --- what is expected of steps ----------------------------------------------------------------------------------------


def info(layer_ms: float | None, head_ms: float | None = None) -> StageInfo:
    return StageInfo(1, 1, 1, 0.0, 1, "float32", layer_ms, head_ms)


def test_before_any_step_what_was_measured_at_loading_tells() -> None:
    assert StepTimes(info(2.0, 10.0), 5).expected_ms(1) == 20
    assert StepTimes(info(2.0), 5).expected_ms(8) == 80
    assert StepTimes(info(None), 5).expected_ms(1) is None
    assert StepTimes(info(None), 5).allowance_s(1) > 60


def test_steps_of_about_as_many_rows_tell_and_where_there_were_none_those_of_fewer() -> None:
    times = StepTimes(info(2.0), 5)
    times.note(128, 256.0)
    assert times.expected_ms(1) == 10
    assert times.expected_ms(100) == 1000
    assert times.expected_ms(128) == times.expected_ms(255) / 255 * 128 == 256
    assert times.expected_ms(512) == 1024
    assert times.allowance_s(128) == STEP_FACTOR * 0.256
    assert times.allowance_s(1) == STEP_LEAST_S


def test_one_slow_step_does_not_make_the_next_one_suspect_or_free() -> None:
    times = StepTimes(info(1.0), 1)
    times.note(1, 1001.0)
    assert times.expected_ms(1) == pytest.approx(301.0)
    for _ in range(50):
        times.note(1, 1.0)
    assert times.expected_ms(1) == pytest.approx(1.0, abs=0.01)
