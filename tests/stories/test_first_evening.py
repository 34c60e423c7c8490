"""Single commands, as typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stories.conftest import ROOT, START_S, Machine, processes_of, run_parallax, said_beside_waiting, until

CAPITAL = "What is the capital of France?"


@pytest.fixture
def environment(tmp_path: Path, models_folder: Path, default_model_folder: Path) -> dict[str, str]:
    return {**os.environ, "PARALLAX_HOME": str(tmp_path / "home"), "PARALLAX_MODELS": str(models_folder)}


def test_one_command_answers_and_three_local_nodes_say_the_same(environment: dict[str, str], tmp_path: Path) -> None:
    alone = run_parallax("-p", CAPITAL, "--temperature", "0", environment=environment)
    assert (alone.returncode, said_beside_waiting(alone.stderr)) == (0, "")
    assert "Paris" in alone.stdout
    split = run_parallax("-p", CAPITAL, "--temperature", "0", "--local-nodes", "3", environment=environment)
    assert split.stdout == alone.stdout, split.stderr
    assert not processes_of(tmp_path)


def test_json_has_text_usage_and_hops_and_stdin_is_part_of_the_prompt(environment: dict[str, str]) -> None:
    done = run_parallax(
        "-p", "Repeat this word:", "--temperature", "0", "--max-tokens", "8", "--json",
        environment=environment, stdin="banana\n",
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert "anana" in answer["text"]
    assert answer["usage"]["completion_tokens"] <= 8
    assert answer["parallax"]["hops"][0]["end"] == 30


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("-p", "x", "--max-tokens", "-3"), "--max-tokens"),
        (("-p", "x", "--temperature", "9"), "--temperature"),
        (("-p", "x", "--dtype", "int4"), "--dtype"),
        (("--max-tokens", "3"), "goes with -p"),
        (("--unknown",), "--unknown"),
        (("node", "--layers", "9:3"), "--layers"),
        (("node", "--memory", "lots"), "--memory"),
        (("node", "--join", "nonsense"), "invitation"),
        (("node", "--api", "here"), "--api"),
        (("node", "--listen", "1.2.3.4"), "--listen"),
        (("models", "import"), "FILE"),
        (("node", "--memory", "1"), "1g"),
        (("node", "--cors", "nas"), "--cors"),
        (("node", "--join", "-"), "--join -"),
        ((), "needs a terminal"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(
    environment: dict[str, str], arguments: tuple[str, ...], named: str
) -> None:
    done = run_parallax(*arguments, environment=environment)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["status", "invite"])
def test_without_a_node_a_command_says_how_to_start_one(environment: dict[str, str], command: str) -> None:
    done = run_parallax(command, environment=environment)
    assert done.returncode == 4
    assert "parallax node" in done.stderr


def test_a_model_that_is_nowhere_is_an_answer_not_a_hang(environment: dict[str, str]) -> None:
    done = run_parallax("-p", "x", "--model", "/nowhere/model.gguf", environment=environment, timeout_s=60)
    assert done.returncode == 5
    assert "/nowhere/model.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_node_of_one_home_is_refused(machine: Machine) -> None:
    node = machine.node("one")
    node.start("--no-discover")
    until("it answers", node.names, START_S)
    second = node.command("node")
    assert second.returncode == 3
    assert str(node.home) in second.stderr
    assert node.stop() == 0


def test_the_control_port_wants_its_token(machine: Machine) -> None:
    node = machine.node("tcp")
    node.start("--control", "tcp", "--no-discover", "--api", "off")
    until("it answers", node.names, START_S)
    control = node.home / "run" / "control.json"
    assert control.stat().st_mode & 0o777 == 0o600
    port = json.loads(control.read_text())["port"]
    import httpx

    assert httpx.get(f"http://127.0.0.1:{port}/v1/state").status_code == 401
    assert httpx.get(f"http://127.0.0.1:{port}/v1/state", headers={"authorization": "Bearer x"}).status_code == 401
    assert node.command("status").returncode == 0
    assert node.command("invite").stdout.count("\n") == 1
    assert not [path for path in node.home.rglob("*") if path.is_socket()]
    assert node.stop() == 0
    assert not control.exists()


def test_secrets_are_files_of_their_owner_alone_and_never_logged(machine: Machine) -> None:
    node = machine.node("keeper")
    node.start("--no-discover", "--log-format", "json")
    until("it answers", node.names, START_S)
    token = node.command("invite").stdout.strip()
    assert node.stop() == 0
    for path in node.home.rglob("*"):
        if path.is_file() and path.name != "log":
            assert path.stat().st_mode & 0o077 == 0, path
    assert token not in node.log()
    for line in node.log().splitlines():
        assert json.loads(line)["level"]


def test_a_node_ends_with_the_parallax_that_started_it(environment: dict[str, str], tmp_path: Path) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-m", "parallax_tui.cli", "-p", "Count to a million.", "--max-tokens", "1000"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert asking.stdout is not None
    asking.stdout.read(1)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    asking.stdout.close()
    until("its node is gone", lambda: not processes_of(tmp_path), 20)


def test_ctrl_c_at_a_question_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-m", "parallax_tui.cli", "-p", "Count to a million.", "--max-tokens", "1000"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stdout is not None
    asking.stdout.read(1)
    asking.send_signal(signal.SIGINT)
    _, stderr = asking.communicate(timeout=20)
    assert asking.returncode == 130
    assert b"Traceback" not in stderr
    assert not processes_of(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_socket()]
