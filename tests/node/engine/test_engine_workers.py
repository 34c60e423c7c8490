"""One worker after another: the next is there soon, and nothing outlives the node. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import trio

from node.engine import forking as forking_module
from node.engine.workers import Workers, open_workers
from node.errors import WorkerDied
from node.wire.records import Hardware
from node.worker_start import CAN_FORK, start_fork_server
from tests.node.engine.driving import generate, load_chain

PROMPT = [5, 6, 7, 8]
READY_S = 3.0
forking = pytest.mark.skipif(not CAN_FORK, reason="workers are started anew here")


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(300):
            await main()

    trio.run(bounded)


def server_of(worker: int) -> int:
    return psutil.Process(worker).ppid()


def gone(*pids: int) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


async def until_gone(*pids: int) -> None:
    with trio.fail_after(30):
        while not gone(*pids):  # noqa: ASYNC110 -- nobody's children here: there is no event to wait for
            await trio.sleep(0.05)


async def dead(workers: Workers, signal_number: int) -> WorkerDied:
    """A worker that is ended so."""
    async with workers.engine(1) as engine:
        os.kill(engine.pid, signal_number)
        await engine.died.wait()
    assert engine.death is not None
    return engine.death


@forking
def test_the_next_worker_is_ready_in_no_time_and_knows_the_machine(tiny_folder: Path) -> None:
    async def main() -> None:
        async with open_workers(device="cpu") as workers:
            async with workers.engine(1) as first:
                chain = await load_chain(first, tiny_folder, [0, 6])
                right = await generate(chain, PROMPT, 4)
                server = server_of(first.pid)
                assert server != os.getpid()
                assert os.getsid(first.pid) == first.pid, "a session of its own"
                os.kill(first.pid, signal.SIGKILL)
                await first.died.wait()
            begun_s = trio.current_time()
            async with workers.engine(1) as second:
                assert trio.current_time() - begun_s < READY_S
                assert second.pid != first.pid
                assert server_of(second.pid) == server
                assert second.hardware == first.hardware, "measured once"
                assert await generate(await load_chain(second, tiny_folder, [0, 3, 6]), PROMPT, 4) == right
                await second.set_threads(2)
        await until_gone(first.pid, second.pid, server)

    run(main)


@forking
def test_how_a_forked_worker_ended_is_known() -> None:
    async def main() -> None:
        async with open_workers(device="cpu") as workers:
            assert (await dead(workers, signal.SIGKILL)).code == -signal.SIGKILL
            assert (await dead(workers, signal.SIGSEGV)).code == -signal.SIGSEGV
            async with workers.engine(1) as engine:
                os.kill(engine.pid, signal.SIGSTOP)
            assert gone(engine.pid), "a stopped one is killed when the node leaves"
            descriptors = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                await dead(workers, signal.SIGKILL)
            assert len(os.listdir("/proc/self/fd")) == descriptors

    run(main)


@forking
def test_two_workers_at_a_time_have_nothing_to_do_with_one_another(tiny_folder: Path) -> None:
    async def main() -> None:
        async with open_workers(device="cpu") as workers, workers.engine(1) as one:
            chain = await load_chain(one, tiny_folder, [0, 6])
            right = await generate(chain, PROMPT, 4)
            assert (await dead(workers, signal.SIGKILL)).code == -signal.SIGKILL
            async with workers.engine(1) as other:
                assert server_of(one.pid) == server_of(other.pid)
                assert await generate(await load_chain(other, tiny_folder, [0, 6]), PROMPT, 4) == right
            assert await generate(chain, PROMPT, 4) == right

    run(main)


@forking
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
def test_a_fork_server_that_is_gone_or_stuck_leaves_its_workers_be_and_is_started_again(
    ending: int, tiny_folder: Path
) -> None:
    async def main() -> None:
        async with open_workers(device="cpu", imports=("torch",)) as workers, workers.engine(1) as one:
            server = server_of(one.pid)
            os.kill(server, ending)
            chain = await load_chain(one, tiny_folder, [0, 6])
            assert len(await generate(chain, PROMPT, 4)) == 4
            async with workers.engine(1) as other:
                assert server_of(other.pid) != server
            assert len(await generate(chain, PROMPT, 4)) == 4

    run(main)


@forking
def test_a_worker_and_its_fork_server_that_are_stopped_together_are_both_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where somebody stops a session's processes: nobody goes on by itself."""
    monkeypatch.setattr(forking_module, "FORK_S", 1.0)

    async def main() -> None:
        async with open_workers(device="cpu") as workers:
            async with workers.engine(1) as one:
                server = server_of(one.pid)
                for pid in (server, one.pid):
                    os.kill(pid, signal.SIGSTOP)
                await one.died.wait()
            async with workers.engine(1) as other:
                assert server_of(other.pid) != server
            assert gone(server)

    run(main)


@forking
def test_an_interpreter_that_lacks_packages_is_told_by_its_last_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o700)

    async def main() -> None:
        async with open_workers(device="cpu", python=str(python)) as workers:
            for _ in range(2):
                with pytest.raises(WorkerDied, match="ModuleNotFoundError: No module named 'msgspec'"):
                    async with workers.engine(1):
                        pass
        with pytest.RaisesGroup(FileNotFoundError):
            async with open_workers(device="cpu", python=str(tmp_path / "absent")) as workers, workers.engine(1):
                pass

    run(main)


ORPHANING_PARENT = """
import psutil, trio
from node.engine.workers import open_workers

async def main():
    async with open_workers(device="cpu") as workers:
        async with workers.engine(1) as engine:
            print(engine.pid, psutil.Process(engine.pid).ppid(), flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


@forking
def test_a_node_that_is_killed_takes_worker_and_fork_server_along() -> None:
    command = [sys.executable, "-c", ORPHANING_PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as node:
        assert node.stdout is not None
        worker, server = map(int, node.stdout.readline().split())
        assert not gone(worker, server)
        node.kill()
    trio.run(until_gone, worker, server)


@forking
def test_what_a_model_has_needed_is_imported_for_the_next_worker(tiny_folder: Path) -> None:
    def imported(worker: int) -> bool:
        return any("libtorch" in mapped.path for mapped in psutil.Process(worker).memory_maps())

    async def main() -> None:
        async with open_workers(device="cpu", imports=()) as workers:
            async with workers.engine(1) as first:
                server = server_of(first.pid)
                assert not imported(server), "nobody has asked for it"
                await load_chain(first, tiny_folder, [0, 6], backend="torch")
            async with workers.engine(1) as second:
                assert server_of(second.pid) == server
                assert imported(second.pid)

    run(main)


class Memory:
    """Of a machine whose hardware was measured before."""

    def __init__(self, known: Hardware | None) -> None:
        self.known = known
        self.told: list[Hardware] = []
        self.used: list[tuple[str, ...]] = []

    def hardware(self) -> Hardware | None:
        return self.known

    def measured(self, hardware: Hardware) -> None:
        self.told.append(hardware)

    def computes_with(self, backends: tuple[str, ...]) -> None:
        self.used.append(backends)


def test_a_machine_that_was_measured_at_an_earlier_start_is_not_measured_again(tiny_folder: Path) -> None:
    known = Hardware("cpu", "measured before", 10**10, 1e10, 1e11, 2)
    memory = Memory(known)

    async def main() -> None:
        async with open_workers(device="cpu", memory=memory) as workers, workers.engine(1) as engine:
            assert engine.hardware == known
            assert memory.told == []
            await load_chain(engine, tiny_folder, [0, 6])
            with trio.fail_after(30):
                while memory.used != [("torch",)]:  # noqa: ASYNC110 -- written by a thread
                    await trio.sleep(0.01)

    run(main)


def test_what_is_measured_is_remembered_and_a_card_that_is_gone_is_not_believed_in() -> None:
    memory = Memory(Hardware("cuda", "a card", 10**10, 1e12, 1e14, 2))

    async def main() -> None:
        async with open_workers(device="cpu", memory=memory) as workers, workers.engine(1) as engine:
            assert engine.hardware.device == "cpu"
            assert memory.told == [engine.hardware]

    run(main)


@forking
def test_a_fork_server_that_was_started_before_the_node_is_the_one_that_forks() -> None:
    started = start_fork_server(sys.executable, ())

    async def main() -> None:
        async with open_workers(device="cpu", started=started) as workers:
            async with workers.engine(1) as engine:
                assert server_of(engine.pid) == started.process.pid
            os.kill(started.process.pid, signal.SIGKILL)
            with trio.fail_after(30):
                while started.process.returncode is None:  # noqa: ASYNC110 -- its own task waits for it
                    await trio.sleep(0.01)
            async with workers.engine(1) as engine:
                assert server_of(engine.pid) != started.process.pid
        await until_gone(engine.pid)

    run(main)


@forking
def test_a_fork_server_that_nobody_takes_over_ends() -> None:
    started = start_fork_server(sys.executable, ())
    started.end()
    assert gone(started.process.pid)
