"""What the screens say, as text, without any screen."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace
from rich.cells import cell_len

from node.journal.state import ModelStatus, NodeView, State
from node.wire.events import HopLatency, NodeGone, NodeSeen, Notice, Numbered
from node.wire.ids import NodeId
from node.wire.layer_range import layer_range
from node.wire.plans import Override, PlanSettings
from node.wire.records import HeldRange
from parallax_tui.state.cells import Cell, fitted, padded, shorten, text_of, width_of, wrapped
from parallax_tui.state.figures import duration, size, speed
from parallax_tui.state.hops import bottleneck, columns_of, hop_rows, step_ms, waterfall
from parallax_tui.state.layers import gap_sentences, layer_map, layer_title, segments
from parallax_tui.state.live import Live
from parallax_tui.state.nodes import DECISIONS_SHOWN, node_rows, node_table
from parallax_tui.state.notices import notice_lines
from parallax_tui.state.starting import starting_lines
from parallax_tui.state.status import status_line
from tests.fakes.swarms import DESK, LOFT, STUDIO, answered, hops, one_node, plan, record, steered, three_nodes

LIVE = Live().at(three_nodes())


def texts(lines: tuple[tuple[Cell, ...], ...]) -> list[str]:
    return [text_of(line).rstrip() for line in lines]


def without(*gone: NodeId, live: Live = LIVE) -> Live:
    for index, node_id in enumerate(gone):
        assert live.state is not None
        live = live.after(Numbered(live.state.seq + 1, float(index), NodeGone(node_id, "x", "silent")))
    return live


def test_figures_are_read_as_people_read_them() -> None:
    assert [size(n) for n in (0, 5_000_000, 104 * 2**20, 3 * 2**30, 200 * 2**30)] == [
        "0.0 MiB",
        "4.8 MiB",
        "104 MiB",
        "3.0 GiB",
        "200 GiB",
    ]
    assert [duration(ms) for ms in (0.84, 42.4, 420, 1400)] == ["0.8 ms", "42.4 ms", "420 ms", "1.4 s"]
    assert [speed(ms) for ms in (0, 42.5, 5)] == ["", "23.5 tok/s", "200 tok/s"]
    assert [layer_range(10, 20), layer_range(3, 4)] == ["10–19", "3"]


@pytest.mark.parametrize("width", [1, 2, 5, 9, 40])
def test_texts_fit_their_columns_even_with_wide_characters(width: int) -> None:
    for text in ("plain words", "日本語の名前", "x" * 50, ""):
        assert cell_len(shorten(text, width)) <= width
        assert cell_len(padded(text, width)) == width
        assert all(cell_len(line) <= max(width, 2) for line in wrapped(text, width))


def test_wrapping_loses_no_word() -> None:
    text = "one two three four five six seven " * 3 + "z" * 30
    assert "".join(wrapped(text, 12)).replace(" ", "") == text.replace(" ", "")


def test_what_matters_least_goes_first() -> None:
    parts = [(0, (Cell("keep"),)), (2, (Cell("second"),)), (1, (Cell("third"),))]
    assert text_of(fitted(parts, 40)) == "keep  second  third"
    assert text_of(fitted(parts, 12)) == "keep  third"
    assert text_of(fitted(parts, 3)) == "keep"


def test_status_line_of_a_whole_swarm() -> None:
    assert text_of(status_line(LIVE, 76)) == "●  smollm2-135m-instruct  3 nodes  30 layers, whole  53.5 tok/s"
    assert text_of(status_line(LIVE, 30)) == "●  3 nodes  30 layers, whole"


def test_status_line_says_what_is_wrong_in_words() -> None:
    assert "2/3 nodes  ✕ layers 10–19 missing" in text_of(status_line(without(STUDIO), 76))
    assert "✕ layers 0–19 missing" in text_of(status_line(without(DESK, STUDIO), 76))
    assert text_of(status_line(LIVE.lost("gone"), 40)) == "✕ node unreachable, retrying"
    assert text_of(status_line(Live(), 76)) == "◌ starting node…"
    assert text_of(status_line(Live(last_words="x"), 76)) == "✕ the node has ended"


@pytest.mark.parametrize("width", [20, 40, 56, 76, 116])
def test_nothing_is_wider_than_its_place(width: int) -> None:
    for live in (
        LIVE,
        without(STUDIO),
        without(DESK, STUDIO, LOFT),
        Live(),
        Live().at(one_node()),
        Live().at(steered()),
    ):
        lines = (
            status_line(live, width),
            *node_table(live, width),
            *layer_map(live, width),
            *waterfall(answered(), max(width, 40)),
            *notice_lines(live, width, 5),
        )
        assert [text_of(line) for line in lines if width_of(line) > max(width, 40)] == []


def test_a_node_that_stands_by_is_no_fault() -> None:
    assert "2 nodes, 1 stands by" in text_of(status_line(Live().at(steered()), 76))
    missing = without(STUDIO, live=Live().at(steered()))
    assert "1/2 nodes" in text_of(status_line(missing, 76))


def test_what_was_decided_is_told_under_the_nodes_and_over_the_map() -> None:
    live = Live().at(steered())
    told = texts(node_table(live, 76))[4:]
    assert told == [
        "· desk holds layers 0–14, set by hand",
        "· studio uses at most 1.0 GiB, set by hand",
        "○ loft holds nothing: it drains",
    ]
    assert layer_title(live) == "layers · plan 3 · latency"
    assert layer_title(LIVE) == "layers · plan 1 · share (auto)"
    assert texts(layer_map(live, 60))[-1].startswith("1 pipeline of up to 2 stages")
    assert "pipeline" not in "".join(texts(layer_map(without(STUDIO, live=live), 60)))


def test_of_many_decisions_a_few_are_told() -> None:
    state = steered()
    assert state.plan is not None
    overrides = tuple(Override(f"node-{number}", duty="drain") for number in range(9))
    crowded = replace(state, plan=replace(state.plan, settings=PlanSettings("latency", overrides)))
    told = texts(node_table(Live().at(crowded), 76))[4:]
    assert len(told) == DECISIONS_SHOWN
    assert told[-1] == "· and 7 more: see `parallax status`"


def test_node_rows_tell_condition_by_word_and_symbol() -> None:
    def row_of(**changes: object) -> str:
        members = {STUDIO: NodeView(record(STUDIO, **changes), 0.0)}
        condition = node_rows(Live().at(three_nodes(nodes=members, plan=plan(STUDIO))))[0].condition
        return f"{condition.symbol} {condition.word}"

    assert row_of() == "● ready"
    assert row_of(held=(HeldRange(10, 20, "loading", 1),)) == "◐ loading"
    assert row_of(held=(HeldRange(10, 20, "draining", 1),)) == "◔ draining"
    assert row_of(held=(), state="standby", sessions=1) == "◔ draining"
    assert row_of(held=(), state="starting") == "◌ starting"
    assert row_of(held=(), state="standby") == "○ standby"
    assert row_of(leaving=True) == row_of(held=(), state="standby", leaving=True) == "◔ leaving"
    assert row_of(state="failed") == "✕ failed"


def test_node_table_names_columns_and_drops_the_least_important() -> None:
    wide, narrow = texts(node_table(LIVE, 76)), texts(node_table(LIVE, 40))
    assert wide[0].split() == ["NODE", "LAYERS", "STATE", "MEMORY", "DEVICE", "RTT", "SESSIONS", "PER", "TOKEN"]
    assert narrow[0].split() == ["NODE", "LAYERS", "STATE", "PER", "TOKEN"]
    full = texts(node_table(LIVE, 118))
    assert full[0].split()[6:10] == ["ENGINE", "KV", "BATCH", "SESSIONS"]
    assert full[2].split()[9:13] == ["ort", "Q4_1", "812/20.5k", "1"]
    assert wide[2].split() == ["studio", "10–19", "●", "ready", "358", "MiB", "cpu", "1.2", "ms", "0", "3.2", "ms"]


def test_a_gone_node_keeps_its_row_and_its_name() -> None:
    assert any("studio" in line and "✕ gone" in line for line in texts(node_table(without(STUDIO), 76)))


def test_segments_tile_the_model() -> None:
    for live in (LIVE, without(STUDIO), without(DESK, LOFT)):
        assert live.state is not None
        found = segments(live.state)
        assert found[0].start == 0
        assert found[-1].end == 30
        assert all(left.end == right.start for left, right in pairwise(found))


def test_replicas_are_counted_and_the_ready_one_is_shown() -> None:
    members = {n: NodeView(record(n), 0.0) for n in (DESK, STUDIO, LOFT)}
    members[LOFT] = NodeView(record(LOFT, held=(HeldRange(10, 30, "loading", 2),)), 0.0)
    found = segments(three_nodes(nodes=members))
    assert [(s.start, s.end, s.kind, s.replicas) for s in found] == [
        (0, 10, "ready", 0),
        (10, 20, "ready", 1),
        (20, 30, "loading", 0),
    ]


def test_gaps_are_told_in_words() -> None:
    assert gap_sentences(LIVE) == ()
    assert gap_sentences(without(STUDIO)) == ("layers 10–19 have no node: waiting for studio to return",)
    assert gap_sentences(without(DESK, STUDIO)) == ("layers 0–19 have no node: waiting for desk and studio to return",)
    unplanned = three_nodes(plan=plan(DESK, LOFT), nodes={n: NodeView(record(n), 0.0) for n in (DESK, LOFT)})
    assert gap_sentences(Live().at(unplanned)) == ("layers 10–19 have no node: another machine has to join",)


def test_the_map_keeps_its_tones_when_a_node_goes() -> None:
    def tone(live: Live) -> str:
        return next(cell.tone for line in layer_map(live, 60) for cell in line if cell.text.startswith("loft"))

    assert tone(LIVE) == tone(without(STUDIO))


def test_hops_are_shifted_by_what_came_before_and_end_where_the_step_does() -> None:
    rows = hop_rows(hops())
    assert [row.offset_ms for row in rows] == pytest.approx([0, 3.6, 14.4])
    whole_ms = step_ms(hops(), 0.6)
    shift, parts = columns_of(rows[-1], whole_ms, 50)
    assert shift + sum(parts) == round(50 * (whole_ms - 0.6) / whole_ms)
    assert columns_of(rows[0], 0.0, 50) == (0, (0, 0, 0, 0))


def test_the_bottleneck_is_named_by_its_largest_part() -> None:
    def hop(name: str, wire_ms: float, compute_ms: float) -> HopLatency:
        return HopLatency(name, name, 0, 1, wire_ms, 0.0, compute_ms, 0.0)

    assert bottleneck(hops(), 0.6) == "studio limits you: 58 % of a step (10.8 ms of 18.7 ms), mostly computing"
    assert (
        bottleneck([hop("a", 9, 1), hop("b", 1, 1)], 0)
        == "the way to a limits you: 83 % of a step (10.0 ms of 12.0 ms)"
    )
    assert bottleneck([hop("a", 0, 1), hop("b", 0, 1)], 8) == "the way back from b limits you: 80 % of a step"
    assert bottleneck([hop("a", 0, 4)], 0) == "a does it all: 4.0 ms a step, 100 % computing"
    assert bottleneck((), 0) == ""


def test_every_part_of_the_waterfall_has_its_own_symbol() -> None:
    drawn = "\n".join(texts(waterfall(answered(), 76)))
    assert all(symbol in drawn for symbol in "╌░█▒◂")
    assert all(word in drawn for word in ("wire", "queue", "compute", "serialise"))


def test_starting_tells_bytes_only_where_they_are_known() -> None:
    def said(**fields: object) -> str:
        return "\n".join(texts(starting_lines(Live().at(State(DESK, model=ModelStatus("m", **fields))), 56)))  # type: ignore[arg-type]

    assert "10 MiB of 40 MiB · 25 %" in said(phase="fetch", done_bytes=10 * 2**20, total_bytes=40 * 2**20)
    assert "%" not in said(phase="fetch", done_bytes=10 * 2**20)
    assert "100 %" in said(phase="load", done_bytes=99, total_bytes=40)


def test_news_become_notices() -> None:
    live = Live().at(three_nodes(nodes={}, notices=()))
    news = [NodeSeen(record(DESK)), NodeSeen(record(LOFT)), NodeSeen(record(LOFT)), NodeGone(LOFT, "loft", "left")]
    for number, event in enumerate([*news, Notice("error", "disk full")], 11):
        live = live.after(Numbered(number, 0.0, event))
    assert [notice.text for notice in live.notices] == ["loft joined", "loft left", "disk full"]
    assert texts(notice_lines(live, 40, 2)) == ["· loft left", "✕ disk full"]


def test_repeated_and_early_events_change_nothing() -> None:
    assert LIVE.after(Numbered(3, 0.0, Notice("info", "old"))) is LIVE
    assert Live().after(Numbered(3, 0.0, Notice("info", "early"))) == Live()


def test_a_swarm_that_is_whole_is_ready_though_this_node_holds_nothing() -> None:
    waiting = three_nodes(model=ModelStatus("m", "none"))
    assert Live().at(waiting).ready
    assert not without(STUDIO, live=Live().at(waiting)).ready
    assert not Live().ready


def test_a_name_with_characters_that_nobody_sees_does_not_look_like_another() -> None:
    twin = record(STUDIO, name="desk\u200b\U000e0041")
    live = Live().at(three_nodes(nodes={DESK: NodeView(record(DESK), 0.0), STUDIO: NodeView(twin, 0.0)}))
    names = [row.name.removesuffix(" (this)") for row in node_rows(live)]
    assert "desk" in names
    assert any(name.startswith("desk\ufffd") for name in names)
