"""What was measured of a machine is measured once, as long as it is the same machine and the same software."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import remembered_machine
from node.home import write_private
from node.remembered_machine import RememberedMachine
from node.wire.records import Hardware

HARDWARE = Hardware("cpu", "a processor", 16_000_000_000, 2e10, 3e11, 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "machine.json"


def test_the_next_start_knows_what_was_measured_and_what_was_computed_with(file: Path) -> None:
    first = RememberedMachine(file)
    assert first.hardware() is None
    assert first.backends == ()
    first.measured(HARDWARE)
    first.computes_with(("ort", "torch"))
    later = RememberedMachine(file)
    assert later.hardware() == HARDWARE
    assert later.backends == ("ort", "torch")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", ["processor", "memory_bytes", "cores", "software"])
def test_another_machine_or_another_version_is_measured_anew(file: Path, key: str) -> None:
    RememberedMachine(file).measured(HARDWARE)
    fields = json.loads(file.read_bytes())
    fields["machine"][key] = "another"
    file.write_text(json.dumps(fields))
    assert RememberedMachine(file).hardware() is None


def test_what_is_remembered_already_is_not_written_again(file: Path) -> None:
    RememberedMachine(file).measured(HARDWARE)
    before = file.stat().st_ino
    RememberedMachine(file).measured(HARDWARE)
    assert file.stat().st_ino == before, "each writing makes a new file"


def test_a_disk_that_takes_nothing_is_no_reason_not_to_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembered_machine, "write_private", full)
    RememberedMachine(file).measured(HARDWARE)
    assert not file.exists()
    assert write_private is not full


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
    max_leaves=20,
)


@given(
    fields=st.dictionaries(st.sampled_from(["machine", "hardware", "backends"]), json_values),
    tail=st.binary(max_size=4),
)
def test_whatever_the_file_holds_is_taken_or_left(
    fields: dict[str, Any], tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("machine") / "machine.json"
    file.write_bytes(json.dumps(fields).encode() + tail)
    remembered = RememberedMachine(file)
    assert all(name.isalnum() for name in remembered.backends)
    assert len(remembered.backends) <= remembered_machine.MOST_BACKENDS
    remembered.hardware()
    remembered.measured(HARDWARE)
    assert RememberedMachine(file).hardware() == HARDWARE


@pytest.mark.parametrize("hardware", [{}, [], "x", {"device": "cpu", "cores": -1}, {"device": "cpu", "cores": 10**30}])
def test_a_measurement_that_cannot_be_is_made_again(file: Path, hardware: object) -> None:
    RememberedMachine(file).measured(HARDWARE)
    fields = json.loads(file.read_bytes())
    file.write_text(json.dumps({**fields, "hardware": hardware}))
    assert RememberedMachine(file).hardware() is None
