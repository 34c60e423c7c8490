"""What a terminal, a log and an eye may be given of somebody else's text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.wire.text import MARK, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("desk", "desk"),
        ("Jürgens Büro 東京 🖥️", "Jürgens Büro 東京 🖥️"),
        ("\x1b[2J\x1b]0;owned\x07ev\r\nil", f"{MARK}[2J{MARK}]0;owned{MARK}ev  il"),
        ("\u009b31m", f"{MARK}31m"),
        ("de\u200bsk\u2060\ufeff", f"de{MARK}sk{MARK}{MARK}"),
        ("desk\U000e0041\U000e007f", f"desk{MARK}{MARK}"),
        ("\u202eksed\u2066", f"{MARK}ksed{MARK}"),
        ("a\ufff9b\ufffac\ufffb", f"a{MARK}b{MARK}c{MARK}"),
        ("soft\u00adhyphen", f"soft{MARK}hyphen"),
        ("\u3164\uffa0\u034f", MARK * 3),
        ("d\U000e0101", f"d{MARK}"),
        ("one\u2028two\u2029three\x85four\u00a0five", "one two three four five"),
        ("\ud800", MARK),
    ],
)
def test_what_hides_commands_or_turns_around_is_seen(raw: str, shown: str) -> None:
    assert printable(raw) == shown


def test_joiners_spell_words_and_emoji_and_hide_nothing_else() -> None:
    family = "👩\u200d💻 \u0645\u06cc\u200c\u062e\u0648"
    assert printable(family) == family
    assert printable("de\u200dsk") == f"de{MARK}sk"
    assert printable("\u200d東\u200d") == f"{MARK}東{MARK}"
    assert printable("東\u200d\u200d京") == f"東{MARK}{MARK}京"


def test_what_is_too_long_is_cut_visibly() -> None:
    assert printable("a" * 70, 64) == "a" * 63 + "…"
    assert printable("a" * 64, 64) == "a" * 64
    assert printable("abc", 0) == ""


@given(st.text(max_size=200), st.integers(0, 64) | st.none())
def test_any_text_becomes_one_safe_line_and_stays_it(text: str, limit: int | None) -> None:
    shown = printable(text, limit)
    assert limit is None or len(shown) <= limit
    assert printable(shown, limit) == shown
    for character in shown.replace("\u200c", "").replace("\u200d", ""):
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
