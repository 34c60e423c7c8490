"""`parallax plan` from the command line, for pools that a file describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parallax_tui.cli import main

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
