"""The worker process: its life, its death, and that nobody gets another's reply. Small random model, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from node.engine.base import BATCHES_IN_FLIGHT, Batch, Slot, StageSpec
from node.engine.patience import PING_EVERY_S, PING_S, STEP_LEAST_S
from node.engine.process import EngineProcess, open_engine
from node.errors import EngineError, LoadFailed, OutOfKV, WorkerDied, WorkerHung
from node.wire.frames import BODY_LIMIT_BYTES, Sampling
from tests.node.engine.driving import KV_BYTES, Part, batch_of, generate, generate_here, load_chain, load_here

PROMPT = [5, 6, 7, 8]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Real processes need real time; the limit only keeps a hang from being endless."""

    async def bounded() -> None:
        with trio.fail_after(300):
            await main()

    trio.run(bounded)


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@asynccontextmanager
async def stopped(engine: EngineProcess) -> AsyncIterator[None]:
    """The worker does not move inside, so that what is asked of it stays under way."""
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if not engine.died.is_set():
            os.kill(engine.pid, signal.SIGCONT)


async def under_way() -> None:
    """Everything that was started has been posted and waits."""
    await trio.testing.wait_all_tasks_blocked(0.05)


def test_a_chain_in_a_worker_gives_the_tokens_of_a_chain_in_this_process(tiny_folder: Path) -> None:
    sampling = Sampling(temperature=1, top_p=0.9, seed=11)
    expected = generate_here([load_here(tiny_folder, 0, 6)], PROMPT, 8, sampling=sampling)

    async def main() -> None:
        async with open_engine(threads=1, device="cpu") as engine:
            names = [backend.name for backend in engine.backends]
            assert names[0] == "ort"
            torch = engine.backends[names.index("torch")]
            assert "torch 2." in torch.version
            assert "float32" in torch.dtypes
            assert engine.hardware.device == "cpu"
            assert engine.hardware.bandwidth_bytes_per_s > 0
            stages = await load_chain(engine, tiny_folder, [0, 2, 6])
            assert await generate(stages, PROMPT, 8, sampling=sampling) == expected
            await engine.set_threads(2)
            assert await generate(stages, PROMPT, 8, sampling=sampling, chunk=3) == expected
            long = [1 + i % 100 for i in range(250)]  # a body of 64,000 bytes and an answer as long
            assert len(await generate(stages, long, 2)) == 2
            pid = engine.pid
        assert engine.died.is_set()
        assert is_gone(pid)

    run(main)


def test_refusals_cross_the_pipe_with_what_they_know_and_the_worker_lives(tiny_folder: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_engine(threads=1, device="cpu") as engine:
            with pytest.raises(LoadFailed, match=r"no config\.json") as failed:
                await engine.load(StageSpec(str(tmp_path), 1, 2, "float32", KV_BYTES))
            assert failed.value.layers == "1"
            stage = await engine.load(StageSpec(str(tiny_folder), 0, 3, "float32", KV_BYTES))
            with pytest.raises(OutOfKV) as full:
                await stage.open("a", 0, 3, None, stage.info.kv_tokens + 1)
            assert (full.value.needed_tokens, full.value.free_tokens) == (
                stage.info.kv_tokens + 1,
                stage.info.kv_tokens,
            )
            assert "open it first" in (await stage.run(batch_of(("a", 0, [1], "nothing")))).slots[0].problem
            with pytest.raises(EngineError, match="shorter prefill chunks"):
                await stage.run(Batch((Slot("a", 0, 1),), bytes(BODY_LIMIT_BYTES + 1), None))
            with pytest.raises(EngineError, match="8 bytes for 1 rows"):
                await stage.run(Batch((Slot("a", 0, 1),), bytes(8), None))
            with pytest.raises(EngineError, match=r"layers 2–3, but the stage holds 0–2"):
                await stage.open("a", 2, 4, None, 1)
            with pytest.raises(EngineError, match="open it first"):
                await stage.rewind("a", 0)
            await stage.close("a")
            await stage.drop()
            await stage.drop()
            await stage.close("a")
            with pytest.raises(EngineError, match="closed"):
                await stage.open("a", 0, 3, None, 1)
            with pytest.raises(EngineError, match=r"no (mps|cuda) device"):
                async with open_engine(threads=1, device="cuda" if sys.platform == "darwin" else "mps"):
                    pass

    run(main)


@posix_only
def test_cancelled_callers_leave_no_reply_to_others_and_no_room_taken(tiny_folder: Path) -> None:
    async def cancelled(engine: EngineProcess, call: Callable[[], Awaitable[object]]) -> None:
        """Ask while the worker does not move, and give up."""
        async with stopped(engine), trio.open_nursery() as nursery:

            async def ask() -> None:
                await call()

            nursery.start_soon(ask)
            await under_way()
            nursery.cancel_scope.cancel()

    async def main() -> None:
        async with open_engine(threads=1, device="cpu") as engine:
            chain = await load_chain(engine, tiny_folder, [0, 6])
            stage = chain[0].stage
            right = await generate(chain, PROMPT, 4)
            await chain[0].open("other", Sampling(), 10)
            batch = batch_of(("other", 0, [50, 60], "token"))
            await cancelled(engine, lambda: stage.run(batch))
            assert await generate(chain, PROMPT, 4) == right
            for _ in range(2 * BATCHES_IN_FLIGHT):  # whoever gives up takes no place with him
                await cancelled(engine, lambda: stage.run(batch))
            assert await generate(chain, PROMPT, 4) == right
            with trio.CancelScope() as scope:  # closing works even so
                scope.cancel()
                await stage.close("other")
            await cancelled(engine, lambda: chain[0].open("all", None, stage.info.kv_tokens))
            await chain[0].open("all", None, stage.info.kv_tokens)
            await stage.close("all")
            await cancelled(engine, lambda: load_chain(engine, tiny_folder, [0, 3]))
            assert await generate(chain, PROMPT, 4) == right

    run(main)


@posix_only
def test_a_killed_worker_ends_every_call_and_another_takes_its_place(tiny_folder: Path) -> None:
    async def main() -> None:
        async with open_engine(threads=1, device="cpu") as engine:
            chain = await load_chain(engine, tiny_folder, [0, 6])
            stage = chain[0].stage
            right = await generate(chain, PROMPT, 4)
            await chain[0].open("s", Sampling(), 10)
            deaths: list[WorkerDied] = []

            async def expect_death(call: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(
                    WorkerDied, match=r"ended by SIGKILL; the system does that where memory runs out"
                ) as death:
                    await call()
                deaths.append(death.value)

            batch = batch_of(("s", 0, [1], "token"))
            async with trio.open_nursery() as nursery, stopped(engine):  # amid batches, a load and an opening
                for _ in range(BATCHES_IN_FLIGHT + 3):
                    nursery.start_soon(expect_death, lambda: stage.run(batch))
                nursery.start_soon(expect_death, lambda: load_chain(engine, tiny_folder, [0, 3]))
                nursery.start_soon(expect_death, lambda: chain[0].open("t", None, 10))
                await under_way()
                os.kill(engine.pid, signal.SIGKILL)
                await engine.died.wait()
            await expect_death(lambda: engine.set_threads(1))
            assert engine.death is not None
            assert [death.code for death in (*deaths, engine.death)] == [-signal.SIGKILL] * (BATCHES_IN_FLIGHT + 7)
            assert len({id(death) for death in deaths}) == len(deaths)
            assert not any(isinstance(death, WorkerHung) for death in deaths)
            await stage.close("s")  # harmless, as is dropping
            await stage.drop()
        async with open_engine(threads=1, device="cpu", known=engine.hardware) as engine:
            assert await generate(await load_chain(engine, tiny_folder, [0, 6]), PROMPT, 4) == right

    run(main)


@posix_only
@pytest.mark.parametrize("at_work", [True, False])
def test_a_worker_that_stands_still_is_seen_killed_and_told_while_it_computes_and_while_it_is_idle(
    tiny_folder: Path, at_work: bool
) -> None:
    async def main() -> None:
        async with open_engine(threads=1, device="cpu") as engine:
            chain = await load_chain(engine, tiny_folder, [0, 6])
            await chain[0].open("s", Sampling(), 10)
            os.kill(engine.pid, signal.SIGSTOP)
            asked_s = trio.current_time()
            if at_work:
                with pytest.raises(WorkerHung) as hung:
                    await chain[0].stage.run(batch_of(("s", 0, [1], "token")))
                assert "a batch of 1 row of 1 sequence" in hung.value.running
            await engine.died.wait()
            assert trio.current_time() - asked_s < STEP_LEAST_S + PING_EVERY_S + PING_S + 5
            assert isinstance(engine.death, WorkerHung)
            assert engine.death.code == -signal.SIGKILL
            assert engine.death.waited_s >= min(STEP_LEAST_S, PING_S)
            assert is_gone(engine.pid)
            with pytest.raises(WorkerHung):
                await engine.set_threads(1)
            await chain[0].stage.close("s")

    run(main)


@posix_only
def test_the_terminals_signals_do_not_reach_the_worker_and_a_stuck_one_is_killed_when_the_node_leaves() -> None:
    async def say_goodbye(engine: EngineProcess) -> None:
        """As a node does that leaves while a range is being dropped: it waits even where it is being cancelled."""
        with trio.CancelScope(shield=True), trio.fail_after(60), pytest.raises(WorkerDied):
            await engine.set_threads(2)

    async def main() -> None:
        with trio.CancelScope() as life:
            async with open_engine(threads=1, device="cpu") as engine, trio.open_nursery() as nursery:
                assert os.getsid(engine.pid) != os.getsid(0)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(engine.pid, number)
                await engine.set_threads(1)
                os.kill(engine.pid, signal.SIGSTOP)
                nursery.start_soon(say_goodbye, engine)
                await under_way()
                life.cancel()
        assert engine.died.is_set()
        assert is_gone(engine.pid)

    run(main)


def test_an_error_inside_the_context_comes_out_as_it_is_and_ends_the_worker() -> None:
    async def main() -> None:
        with pytest.raises(LookupError, match=r"^ours$"):
            async with open_engine(threads=1, device="cpu") as engine:
                raise LookupError("ours")
        assert is_gone(engine.pid)

    run(main)


def test_a_stage_in_service_answers_and_gets_parts_while_another_loads(
    tiny_folder: Path, default_model_folder: Path
) -> None:
    async def main() -> None:
        async with open_engine(threads=1, device="cpu") as engine:
            chain = await load_chain(engine, tiny_folder, [0, 6])
            loaded: list[Part] = []

            async def load() -> None:
                loaded.extend(await load_chain(engine, default_model_folder, [0, 30]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(load)
                await generate(chain, PROMPT, 2)
                await load_chain(engine, tiny_folder, [2, 3])
                assert not loaded
            assert loaded

    run(main)


WORKER = [sys.executable, "-P", str(Path(sys.modules[open_engine.__module__].__file__ or "").with_name("bootstrap.py"))]


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_garbage_on_its_input_ends_the_worker_with_a_clear_message(garbage: bytes) -> None:
    with subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stderr is not None
        worker.stdin.write(garbage)
        worker.stdin.flush()  # and stays open: the worker ends of its own accord
        assert worker.wait(timeout=120) == 3
        assert b"engine worker: engine pipe" in worker.stderr.read()


def test_the_end_of_its_input_ends_the_worker() -> None:
    done = subprocess.run(WORKER, input=b"", capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


ORPHANING_PARENT = """
import sys, trio
from node.engine.base import StageSpec
from node.engine.process import open_engine

async def main():
    async with open_engine(threads=1, device="cpu") as engine:
        print(engine.pid, flush=True)
        await engine.load(StageSpec(sys.argv[1], 0, 30, "float32", 1 << 20))

trio.run(main)
"""


@posix_only
def test_a_node_that_is_killed_takes_its_worker_along_even_in_the_middle_of_a_load(default_model_folder: Path) -> None:
    parent = [sys.executable, "-c", ORPHANING_PARENT, str(default_model_folder)]
    with subprocess.Popen(parent, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as node:
        assert node.stdout is not None
        worker = psutil.Process(int(node.stdout.readline()))
        node.kill()  # right after the load was asked for; importing and reading take seconds
    try:
        worker.wait(timeout=20)
    except psutil.TimeoutExpired:
        assert is_gone(worker.pid)


def interpreter(folder: Path, before: str, options: str = "") -> str:
    """Another way to start this interpreter, as an executable file."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\n{before}\nexec "{sys.executable}" {options} "$@"\n')
    file.chmod(0o700)
    return str(file)


@posix_only
def test_an_interpreter_that_lacks_packages_is_told_by_its_last_words(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(WorkerDied, match="ModuleNotFoundError: No module named 'msgspec'"):
            async with open_engine(threads=1, python=interpreter(tmp_path, "", "-S")):
                pass
        with pytest.raises(FileNotFoundError):
            async with open_engine(threads=1, python=str(tmp_path / "absent")):
                pass

    run(main)


@posix_only
def test_what_libraries_print_does_not_mix_with_replies(tmp_path: Path, tiny_folder: Path) -> None:
    """The interpreter prints on descriptor 1 at every import of torch and transformers, and floods its stderr."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event == 'import' and arguments[0].split('.')[0] in ('torch', 'transformers'):\n"
        "        os.write(1, b'noise on 1\\n')\n"
        "        os.write(2, b'noise on 2\\n' * 100)\n"
        "sys.addaudithook(hook)\n"
    )

    async def main() -> None:
        python = interpreter(tmp_path, f'export PYTHONPATH="{tmp_path}"')
        async with open_engine(threads=1, device="cpu", python=python) as engine:
            assert len(await generate(await load_chain(engine, tiny_folder, [0, 6]), PROMPT, 3)) == 3
            os.kill(engine.pid, signal.SIGKILL)
            await engine.died.wait()
            with pytest.raises(WorkerDied, match=r"noise on [12]"):
                await engine.set_threads(1)

    run(main)


def test_our_folder_does_not_come_onto_the_workers_search_path() -> None:
    """Beside `node` lie our environment's packages, which would hide the worker's own."""
    program = (
        "import runpy, sys\n"
        "before = list(sys.path)\n"
        f"runpy.run_path({WORKER[-1]!r})['make_node_known']()\n"
        "import node.engine.messages\n"
        f"assert node.engine.messages.__file__.startswith({str(Path(WORKER[-1]).parent)!r})\n"
        "assert sys.path == before, sys.path\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd="/")
