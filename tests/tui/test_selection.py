"""Text that is on the screen can be selected with the mouse and copied."""

from __future__ import annotations

from textual.geometry import Offset
from textual.selection import Selection

from parallax_tui.widgets.lines import Lines
from parallax_tui.widgets.selecting import selected_text
from parallax_tui.widgets.transcript import Transcript
from tests.fakes.node_api import Answer, FakeNode
from tests.fakes.swarms import three_nodes
from tests.fakes.terminal import Terminal, at_node


async def drag(
    terminal: Terminal, widget: type[Transcript] | str, start: tuple[int, int], end: tuple[int, int]
) -> None:
    await terminal.pilot.mouse_down(widget, offset=start)
    await terminal.pilot.hover(widget, offset=end)
    await terminal.pilot.mouse_up(widget, offset=end)
    await terminal.pilot.pause()


async def test_code_of_an_answer_is_copied_without_its_margin(node: FakeNode) -> None:
    node.state = three_nodes()
    node.answers = [Answer(["Like this:\n\n```python\nfor x in y:\n    print(x)\n```\n\nThat is all."])]
    async with at_node(node) as terminal:
        await terminal.type("how?")
        await terminal.shows("That is all.")
        transcript = terminal.app.screen.query_one(Transcript)
        lines = transcript.text.splitlines()
        first = next(y for y, line in enumerate(lines) if "for x in y" in line)
        await drag(terminal, Transcript, (0, first), (40, first + 1))
        assert terminal.app.screen.get_selected_text() == "for x in y:\n    print(x)"
        await terminal.press("ctrl+c")
        assert terminal.app.clipboard == "for x in y:\n    print(x)"
        assert terminal.app.screen.get_selected_text() is None
        assert not terminal.app.quit_armed, "the key has copied; it does not quit too"


async def test_a_part_of_a_line_is_copied(node: FakeNode) -> None:
    node.state = three_nodes()
    node.answers = [Answer(["one two three"])]
    async with at_node(node) as terminal:
        await terminal.type("count")
        await terminal.shows("one two three")
        transcript = terminal.app.screen.query_one(Transcript)
        y = next(y for y, line in enumerate(transcript.text.splitlines()) if "one two three" in line)
        await drag(terminal, Transcript, (2 + 4, y), (2 + 7, y))
        assert terminal.app.screen.get_selected_text() == "two"


async def test_figures_of_the_topology_are_copied(node: FakeNode) -> None:
    node.state = three_nodes()
    async with at_node(node) as terminal:
        await terminal.press("f2")
        await terminal.shows("studio")
        table = next(lines for lines in terminal.app.screen.query(Lines) if "studio" in lines.text)
        y = next(y for y, line in enumerate(table.text.splitlines()) if line.startswith("studio"))
        await drag(terminal, f"#{table.id}", (0, y), (5, y))
        assert terminal.app.screen.get_selected_text() in ("studi", "studio")


def test_columns_are_counted_as_the_mouse_points() -> None:
    wide = Selection(Offset(2, 0), Offset(4, 0))
    assert selected_text(["日本語"], wide) == "本"
    assert selected_text(["abc  ", "def  ", "ghi"], Selection(Offset(1, 0), Offset(2, 2))) == "bc\ndef\ngh"
    assert selected_text([], wide) == ""
