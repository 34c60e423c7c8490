"""Whatever people and peers write, what is read from the wire can be shown."""

from __future__ import annotations

from node.wire.codec import decode, encode
from node.wire.events import Notice
from node.wire.frames import Close, Failed
from node.wire.models import ModelFacts, ModelRef
from node.wire.parts import Profile
from node.wire.plans import Override, Plan, PlanSettings, Standby
from node.wire.records import Hardware, NodeRecord
from node.wire.text import MARK

EVIL = "\x1b[2K\n22:00:00 warning main: forged\u202e\u200b\U000e0041"
SHOWN = f"{MARK}[2K 22:00:00 warning main: forged{MARK}{MARK}{MARK}"
FACTS = ModelFacts(30, 1, 1, 1, 1, 1, 1, 1)


def test_a_record_says_nothing_that_cannot_be_shown() -> None:
    hardware = Hardware("cpu", EVIL, 1, 1.0, 1.0, 1)
    record = NodeRecord("n", EVIL, 1, 5.0, "m", (), EVIL, hardware, region=EVIL, problem=EVIL)
    read = decode(encode(record), NodeRecord, where="test", limit_bytes=9999)
    assert read.hardware is not None
    assert {read.name, read.software, read.region, read.problem, read.hardware.device_name} == {SHOWN}


def test_neither_does_a_plan_or_the_model_that_it_names() -> None:
    raw = {
        "epoch": 1,
        "author": "a",
        "model": {"name": EVIL, "source": EVIL, "digest": "0"},
        "dtype": "float32",
        "facts": FACTS,
        "assignments": [],
        "standby": [{"node_id": "n", "reason": EVIL}],
        "settings": {"overrides": [{"node_id": "n", "name": EVIL}]},
        "note": EVIL,
    }
    plan = decode(encode(raw), Plan, where="test", limit_bytes=9999)
    assert plan.model == ModelRef(SHOWN, SHOWN, "0")
    assert plan.standby == (Standby("n", SHOWN),)
    assert plan.settings == PlanSettings(overrides=(Override("n", name=SHOWN),))
    assert plan.note == SHOWN


def test_nor_reasons_of_stages_and_words_of_engines() -> None:
    assert Close("0" * 32, 1, EVIL).reason == Failed("0" * 32, 1, EVIL).reason == SHOWN
    assert Notice.of("error", EVIL).text == SHOWN


def test_a_part_that_travels_keeps_its_words_as_they_were_signed() -> None:
    assert Profile(1, EVIL, 5.0, "m", (), "s").name == EVIL
