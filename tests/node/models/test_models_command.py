"""`parallax models`: tables on stdout, progress and errors on stderr, exit codes that mean something."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from node.models.command import _ProgressLine, run, size_text
from node.models.quality import EXACT, Quality, form_of, quality_of


def test_importing_listing_and_removing(tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "models"
    assert run("list", None, models, as_json=False) == 0
    assert "`parallax models pull default`" in capsys.readouterr().out

    assert run("import", str(tiny_gguf), models, as_json=False) == 0
    said = capsys.readouterr()
    assert "tiny-test" in said.out
    assert "converting" in said.err

    assert run("list", None, models, as_json=False) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "SIZE", "STATE", "FORM", "TOP-1", "SOURCE"]
    assert row.split()[0] == "tiny-test"
    assert row.split()[-5:] == ["whole", "Q4_0", "97", "%", "gguf:tiny.gguf"]
    assert header.index("SOURCE") == row.index("gguf:")

    assert run("list", None, models, as_json=True) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["complete"] is True
    assert (entry["form"], entry["quality"]) == ("Q4_0", {"kl": 0.0028, "top1": 0.974})
    assert entry["bytes_on_disk"] == sum(
        path.stat().st_size
        for path in Path(entry["path"]).iterdir()
        if path.name not in ("parallax.json", "model.gguf.hashes.json")
    )

    assert run("rm", "tiny-test", models, as_json=False) == 0
    assert capsys.readouterr().out.startswith("removed tiny-test (")
    assert run("list", None, models, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_on_a_terminal_a_model_is_removed_only_when_whoever_sits_there_agrees(
    tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    run("import", str(tiny_gguf), models, as_json=False)
    for said, status in (("\n", 1), ("no\n", 1), ("", 1), ("y\n", 0)):
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        assert run("rm", "tiny-test", models, as_json=False, asks=True) == status
        assert "remove tiny-test (" in capsys.readouterr().err
    assert run("rm", "tiny-test", models, as_json=False, asks=True) == 5, "what is not there is refused without asking"


def test_pulling_a_local_file_prepares_it(tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pull", str(tiny_gguf), tmp_path / "models", as_json=False) == 0
    assert "tiny-test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("action", "argument", "status"),
    [("rm", "nothing", 5), ("rm", None, 2), ("import", "nowhere", 5), ("pull", "x y", 5)],
)
def test_errors_are_told_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, argument: str | None, status: int
) -> None:
    assert run(action, argument, tmp_path / "models", as_json=False) == status  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("parallax: ")


def test_a_terminal_sees_one_line_written_over() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with _ProgressLine(out) as line:
        line.show("fetch", 5_000_000, 10_000_000, "a file")
        line.show("convert", 0, 0, "another process prepares it; waiting for it")
    assert "\n" not in out.getvalue()
    assert "fetching   50 %  5.0 MB of 10.0 MB  a file" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (538_090_408, "538 MB")]
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size_text(count) == text


def test_of_several_forms_the_worst_counts_and_an_unmeasured_one_says_nothing() -> None:
    assert form_of({"Q4_K": 80, "Q6_K": 19, "F32": 1}) == "Q4_K, Q6_K"
    assert quality_of({"Q4_K": 80, "Q6_K": 19, "IQ1_S": 1}) == Quality(4.0e-3, 0.977)
    assert quality_of({"Q4_K": 80, "IQ1_S": 20}) is None
    assert quality_of({"BF16": 5}) == EXACT
    assert (quality_of({}), form_of({})) == (None, "-")
