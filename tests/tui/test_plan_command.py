"""`parallax plan` from the command line, for pools that a file describes and for a running swarm."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.routes.plan_reply import plan_reply
from node.api.routes.plan_request import parse_plan_request
from node.errors import UsageError
from node.plan.live.propose import propose
from node.wire.plans import Override, PlanSettings
from parallax_tui.cli import main
from parallax_tui.headless.plan_changes import as_request, read_changes
from tests.fakes.node_api import FakeNode, running
from tests.fakes.swarms import DESK, FACTS, LOFT, NAMES, RANGES, STUDIO, record, three_nodes
from tests.fakes.swarms import plan as plan_in_force

POOL = """
[[node]]
name = "studio"
memory_gib = 64
bandwidth_gbps = 400
tflops = 14
[[node]]
name = "attic"
memory_gib = 24
bandwidth_gbps = 1008
tflops = 82
[[link]]
a = "studio"
b = "attic"
rtt_ms = 0.4
mbps = 1000
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    file = tmp_path / "pool.toml"
    file.write_text(POOL)
    return file


def test_a_described_pool_gets_a_table_a_map_and_a_prediction(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pool), "--model", "qwen3-32b", "--objective", "latency"]) == 0
    text = capsys.readouterr().out
    assert "qwen3-32b: 64 layers" in text
    assert "studio" in text
    assert "tokens/s" in text
    assert "e+" not in text


def test_as_json_it_covers_every_layer(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pool), "--model", "Qwen/Qwen3-32B", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["layers"] == 64
    assert plan["problems"] == []


def test_a_model_that_fits_nowhere_says_how_much_is_missing(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pool), "--model", "kimi-k2"]) == 2
    assert "GiB missing" in capsys.readouterr().err


def test_a_model_may_be_a_folder_with_its_config(
    pool: Path, default_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(pool), "--model", str(default_model_folder), "--objective", "latency"]) == 0
    assert "not split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "node"),
        ("[[node]", "TOML"),
        (POOL.replace("64", "nan"), "memory_gib"),
        (POOL.replace("64", "-1"), "memory_gib"),
        (POOL.replace('"attic"', '"studio"', 1), "studio"),
        (POOL.replace('b = "attic"', 'b = "cellar"'), "cellar"),
        (POOL.replace('b = "attic"', 'b = "studio"'), "studio"),
        (POOL + "colour = 1", "colour"),
        (POOL.replace("memory_gib = 64", 'memory_gib = 64\nlayers = "0:99"'), "0–98: studio: the model has 36 layers"),
        ("\ud800", "UTF-8"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_by_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    assert main(["plan", str(file), "--model", "qwen3-8b"]) == 2
    told = capsys.readouterr().err
    assert str(file) in told
    assert named in told


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["nowhere.toml", "--model", "qwen3-8b"], 2, "nowhere.toml"),
        (["POOL"], 2, "--model"),
        (["POOL", "--model", "gpt-9"], 5, "presets"),
        (["--data-dir", "nowhere"], 4, "no node answers"),
    ],
)
def test_what_is_missing_is_told(
    pool: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, named: str
) -> None:
    assert main(["plan", *[str(pool) if word == "POOL" else word for word in arguments]]) == code
    assert named in capsys.readouterr().err


async def of_swarm(node: FakeNode, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `parallax plan` beside a node."""
    monkeypatch.setenv("PARALLAX_HOME", str(node.home.data))
    async with running(node):
        return await asyncio.to_thread(main, ["plan", *arguments])


def reply(*overrides: Override, applied: bool = False) -> tuple[int, bytes]:
    """What a real node would answer with these set by hand."""
    members = {node_id: record(node_id) for node_id in RANGES}
    before = plan_in_force()
    proposal = propose(
        DESK, members, before.model, before.dtype, FACTS, before, PlanSettings(overrides=tuple(overrides))
    )
    return 200, msgspec.json.encode(plan_reply(proposal, before, {**NAMES}, applied=applied))


async def test_a_running_swarm_says_what_would_change_and_that_nothing_did(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.plan_answer = reply(Override(LOFT, duty="drain"))
    assert await of_swarm(node, monkeypatch, "--drain", "loft") == 0
    assert node.plan_asked == [("/v1/plan", {"nodes": {"loft": {"duty": "drain"}}, "reset": []})]
    text = capsys.readouterr().out
    assert "tokens/s" in text
    assert "  desk    layers 0–9 → layers 0–14\n" in text
    assert "  loft    layers 20–29 → none\n" in text
    assert "MiB to load" in text
    assert text.endswith("nothing was changed; add --apply\n")


async def test_a_change_for_which_memory_is_short_says_what_is_not_served_meanwhile(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = 136 * 1024**2
    others = Override(STUDIO, (10, 20)), Override(LOFT, (0, 10), full)
    node.plan_answer = reply(Override(DESK, (20, 30), full), *others)
    assert await of_swarm(node, monkeypatch) == 0
    assert "nothing is served for a while: there is no room for old and new at once: layers 0–9\n" in (
        capsys.readouterr().out
    )
    node.plan_answer = reply(Override(DESK, (20, 30), 2 * full), *others)
    assert await of_swarm(node, monkeypatch) == 0
    assert "nothing is served" not in capsys.readouterr().out


async def test_applied_it_is_told_which_plan_is_in_force(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.plan_answer = reply(Override(DESK, (0, 12)), applied=True)
    options = [
        "--objective",
        "latency",
        "--pin",
        "desk=0:12",
        "--cap",
        "desk=6g",
        "--exclude",
        "a=b",
        "--reset",
        "loft",
    ]
    assert await of_swarm(node, monkeypatch, *options, "--apply") == 0
    [(path, body)] = node.plan_asked
    assert path == "/v1/plan/apply"
    assert body == {
        "objective": "latency",
        "nodes": {"desk": {"layers": [0, 12], "memory_bytes": 6 * 1024**3}, "a=b": {"duty": "exclude"}},
        "reset": ["loft"],
    }
    assert "plan 2 is in force; follow it with `parallax status`" in capsys.readouterr().out


async def test_a_swarm_that_is_as_it_should_be_says_so(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.plan_answer = reply()
    node.state = three_nodes()
    assert await of_swarm(node, monkeypatch, "--live", "--model", "smollm2-135m-instruct") == 0
    assert "plan 1 stays as it is: " in capsys.readouterr().out
    assert node.plan_asked == [("/v1/plan", {"nodes": {}, "reset": []})]


async def test_as_json_the_nodes_answer_is_passed_on(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.plan_answer = reply(Override(LOFT, duty="drain"))
    assert await of_swarm(node, monkeypatch, "--drain", "loft", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["changes"], told["applied"], told["layers"]) == (True, False, 30)
    assert "text" not in told


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (422, 2), (409, 8), (503, 8), (500, 8)],
)
async def test_a_refusal_is_the_nodes_own_sentence(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    node.plan_answer = status, b'{"error": {"message": "no, because"}}'
    assert await of_swarm(node, monkeypatch, "--drain", "loft", "--apply") == code
    assert capsys.readouterr().err == "parallax: no, because\n"


async def test_an_answer_that_cannot_be_understood_is_of_another_version(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.plan_answer = 200, b"{}"
    assert await of_swarm(node, monkeypatch) == 1
    assert "another version" in capsys.readouterr().err


async def test_another_model_is_planned_here_for_the_swarms_machines(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.state = three_nodes()
    assert await of_swarm(node, monkeypatch, "--model", "qwen3-32b") == 2
    assert "GiB missing" in capsys.readouterr().err
    assert await of_swarm(node, monkeypatch, "--model", "qwen3-32b", "--drain", "loft") == 2
    assert "smollm2-135m-instruct" in capsys.readouterr().err
    assert not node.plan_asked


def test_described_machines_take_changes_as_what_if(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["plan", str(pool), "--model", "qwen3-8b", "--json"]
    assert main([*ask, "--pin", "attic=0:20"]) == 0
    stages = [stage for p in json.loads(capsys.readouterr().out)["pipelines"] for stage in p["stages"]]
    assert {"node": "attic", "name": "attic", "start": 0, "end": 20} in stages
    for change in (["--exclude", "attic"], ["--drain", "attic"], ["--cap", "attic=16m"]):
        assert main([*ask, *change]) == 0
        assert [each["node"] for each in json.loads(capsys.readouterr().out)["standby"]] == ["attic"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--apply"], "--apply"),
        (["--reset", "attic"], "--reset"),
        (["--drain", "cellar"], "cellar.*attic, studio"),
        (["--pin", "attic"], "--pin 'attic'.*NAME=VALUE"),
        (["--pin", "=0:5"], "--pin"),
        (["--pin", "attic=5:0"], "--pin attic.*A-B"),
        (["--pin", "attic=0:999"], "36 layers|0:999"),
        (["--pin", "attic=0:5", "--pin", "attic=5:9"], "--pin attic.*twice"),
        (["--cap", "attic=lots"], "--cap attic.*6g"),
        (["--drain", "attic", "--exclude", "attic"], "contradict"),
    ],
)
def test_changes_that_cannot_be_are_refused(
    pool: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["plan", str(pool), "--model", "qwen3-8b", *arguments]) == 2
    assert re.search(named, capsys.readouterr().err)


@given(
    st.lists(st.text(max_size=12) | st.from_regex(r"[a-z=]{1,3}=\d{1,3}:\d{1,3}", fullmatch=True), max_size=3),
    st.lists(st.text(max_size=12) | st.from_regex(r"[a-z=]{1,3}=\d{1,3}[kmgt]?", fullmatch=True), max_size=3),
    st.lists(st.text(max_size=12) | st.just("\udcff"), max_size=3),
)
def test_whatever_is_typed_is_a_usage_error_or_a_body_that_a_node_takes(
    pins: list[str], caps: list[str], names: list[str]
) -> None:
    try:
        changes = read_changes(pins, caps, names, (), names)
    except UsageError:
        return
    parse_plan_request(json.dumps(as_request(changes, "auto")).encode())


def test_without_any_machine_it_says_which_ones_a_model_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARALLAX_HOME", str(tmp_path))
    assert main(["plan", "--model", "glm-4.6"]) == 0
    text = capsys.readouterr().out
    assert "657.0 GiB of weights" in text
    assert re.search(r"^1024 GiB +1$", text, re.MULTILINE)
    assert main(["plan", "--model", "glm-4.6", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    counts = [each["count"] for each in told["machines"]]
    assert counts == sorted(counts, reverse=True)
    assert all(m["count"] * m["memory_bytes"] > told["weight_bytes"] for m in told["machines"])
    assert main(["plan", "--model", "glm-4.6", "--live"]) == 4


def test_what_does_not_fit_is_told_to_programs_too(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pool), "--model", "glm-4.6", "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["missing_bytes"] > 500 * 1024**3
    assert error["message"] in err


def test_what_is_assumed_is_told(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pool), "--model", "qwen3-8b"]) == 0
    text = capsys.readouterr().out
    assert "prompts of 512 and answers of 256 tokens" in text
    assert "assumed" not in text
    pool.write_text(POOL.partition("[[link]]")[0].replace("tflops = 82", ""))
    assert main(["plan", str(pool), "--model", "qwen3-8b"]) == 0
    text = capsys.readouterr().out
    assert "assumed: attic" in text
    assert "round trips not given" in text


@pytest.mark.parametrize("option", ["--drain", "--exclude"])
def test_a_node_is_not_both_pinned_and_sent_away(option: str, pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(pool), "--model", "qwen3-8b", "--pin", "attic=0:10", option, "attic"]) == 2
    assert "contradict" in capsys.readouterr().err
