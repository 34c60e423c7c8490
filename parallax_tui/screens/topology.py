"""The topology: nodes, the layer map, where the last request's time went, and the latest notices."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Static

from parallax_tui.actions import bindings
from parallax_tui.screens.live_screen import LiveScreen
from parallax_tui.state.hops import shown_request, waterfall
from parallax_tui.state.layers import layer_map, layer_title
from parallax_tui.state.live import Live
from parallax_tui.state.nodes import node_table
from parallax_tui.state.notices import notice_lines
from parallax_tui.widgets.lines import Lines

NOTICES_SHOWN = 6


class TopologyScreen(LiveScreen):
    """Everything about the swarm on one page that scrolls where it is too long."""

    SCOPES: ClassVar[tuple[str, ...]] = ("topology", "app")
    BINDINGS = bindings("topology")
    AUTO_FOCUS = "VerticalScroll"
    DEFAULT_CSS = """
    TopologyScreen {
        & > VerticalScroll { padding: 0 2; scrollbar-size-vertical: 1; background: $background; }
        & #below { height: auto; layout: vertical; }
        & #below > Vertical { height: auto; }
        &.-wide #below { layout: horizontal; }
        &.-wide #below > Vertical { width: 3fr; }
        &.-wide #below > Vertical:last-child { width: 2fr; padding-left: 3; }
        & .title { color: $primary; text-style: bold; height: 1; }
        & > VerticalScroll Lines { margin-bottom: 1; }
        &.-tall > VerticalScroll > .title { margin-top: 1; }
    }
    """
    VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]  # noqa: RUF012 -- Textual types it as an instance variable

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static("nodes", classes="title", markup=False)
            yield Lines(id="nodes")
            yield Static(layer_title(self.owner.live), id="layers-title", classes="title", markup=False)
            yield Lines(id="layers")
            with Container(id="below"):
                with Vertical():
                    yield Static("last request", classes="title", markup=False)
                    yield Lines(id="hops")
                with Vertical():
                    yield Static("notices", classes="title", markup=False)
                    yield Lines(id="notices")
        yield from super().compose()

    def show(self, live: Live) -> None:
        super().show(live)
        request = shown_request(live.state) if live.state is not None else None
        self.query_one("#nodes", Lines).show(partial(node_table, live))
        self._entitle(layer_title(live))
        self.query_one("#layers", Lines).show(partial(layer_map, live))
        self.query_one("#hops", Lines).show(partial(waterfall, request))
        self.query_one("#notices", Lines).show(partial(notice_lines, live, limit=NOTICES_SHOWN))

    def _entitle(self, title: str) -> None:
        label = self.query_one("#layers-title", Static)
        if title != label.content:  # a Static is laid out anew with every update
            label.update(title)

    def action_back(self) -> None:
        self.owner.action_topology()
