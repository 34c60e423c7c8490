"""The app: follows one node, tells the screens, and owns what they share. Starts and stops nothing itself.

Whoever starts a node for it (the command line) hands in `child_problem`, which tells when that node has ended.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, get_running_loop, to_thread
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING

from textual import work
from textual.app import App, SystemCommand
from textual.screen import ModalScreen, Screen
from textual.theme import BUILTIN_THEMES
from textual.timer import Timer

from node.home import Control, Home
from parallax_tui import theming
from parallax_tui.actions import bindings
from parallax_tui.keymap import FILE as KEYMAP_FILE
from parallax_tui.keymap import load_keymap
from parallax_tui.screens.live_screen import LiveScreen
from parallax_tui.state.live import Live
from parallax_tui.widgets.prompt import Prompt

if TYPE_CHECKING:
    from parallax_tui.screens.chat import ChatScreen

PAINT_S = 0.25
SLOW_PAINT_S = 1.0
"""Pictures of the swarm are shown at most so often; a swarm of fifty sends more news than anyone reads."""
CHILD_CHECK_S = 2.0
ARMED_S = 3.0
"""How long a second ctrl+c quits."""


class ParallaxApp(App[None], inherit_bindings=False):
    """Chat and topology of the node whose folders are `home`.

    Args:
        home: says how the node is reached, and where keymap and themes are.
        child_problem: the last words of the node that was started for us, once it has ended; None while it runs, or
            if none was started.
        theme: the theme's name; by default the one chosen last.
        slow_link: paint less often.
    """

    TITLE = "parallax"
    BINDINGS = bindings("app")
    DEFAULT_MODE = "starting"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 -- Textual types it as an instance variable
    CSS = """
    * {
        scrollbar-color: $panel; scrollbar-color-hover: $foreground 40%; scrollbar-color-active: $primary;
        scrollbar-background: $background; scrollbar-background-hover: $background;
        scrollbar-background-active: $background; scrollbar-corner-color: $background;
    }
    ToastRack { margin-bottom: 6; }
    """

    def __init__(
        self,
        home: Home,
        *,
        child_problem: Callable[[], str | None] = lambda: None,
        theme: str | None = None,
        slow_link: bool = False,
    ) -> None:
        self._themes = theming.themes_of(home)
        self._keymap_file = load_keymap(home.config.parent / KEYMAP_FILE)
        super().__init__()
        self.home, self.child_problem, self.slow_link = home, child_problem, slow_link
        self.live = Live()
        self.quit_armed = False
        self.keys = self._keymap_file.keys
        self._problems = [*self._themes.problems, *self._keymap_file.problems]
        self._paint_s = SLOW_PAINT_S if slow_link else PAINT_S
        self._painted_at = 0.0
        self._paint_timer: Timer | None = None
        self._was_ready = False
        self._last_words = ""
        self._chat: ChatScreen | None = None
        self._early = ("", "")
        """What was asked, and what was being written, before the model could answer."""
        self._event_loop: AbstractEventLoop | None = None
        self._end_code: int | None = None
        self._set_up_themes(theme)
        self.add_mode("starting", _starting)
        self.add_mode("chat", self._open_chat)
        self.add_mode("topology", _topology)
        self.set_keymap(dict(self.keys))

    def control(self) -> Control:
        """How the node is reached now.

        Raises:
            NoNode: none has announced itself.
        """
        return self.home.read_control()

    @property
    def code_style(self) -> str:
        """The Pygments style that goes with the theme."""
        chosen = self._themes.by_name.get(self.theme)
        return chosen.code_style if chosen else "github-dark"

    def _set_up_themes(self, wanted: str | None) -> None:
        ours = self._themes.by_name
        for theme_file in ours.values():
            self.register_theme(theme_file.theme)
        if wanted and wanted not in ours:
            self._problems.append(f'theme "{wanted}" is not there; there are {", ".join(sorted(ours)) or "none"}')
        choices = (wanted, theming.remembered_choice(self.home.config.parent), theming.DEFAULT)
        chosen = next((name for name in choices if name in ours), None)
        if chosen is not None:
            self.set_reactive(App.theme, chosen)
            for name in set(BUILTIN_THEMES) - set(ours):
                self.unregister_theme(name)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return theming.FALLBACK_VARIABLES

    def end(self, code: int) -> None:
        """Leave with this exit code, the terminal restored. For signal handlers; also before the app runs."""
        self._end_code = code
        if self._event_loop is not None and not self._event_loop.is_closed():
            # a handler runs between any two steps, and only this wakes the loop from its wait
            self._event_loop.call_soon_threadsafe(self._exit_if_asked)

    def _exit_if_asked(self) -> None:
        if self._end_code is not None:
            self.exit(return_code=self._end_code)

    def on_mount(self) -> None:
        self._event_loop = get_running_loop()
        self._exit_if_asked()
        if self.slow_link:
            self.animation_level = "none"
        self._remembered = self.theme
        self.theme_changed_signal.subscribe(self, lambda theme: self._remember_theme(theme.name))
        for problem in self._problems:
            self.notify(problem, severity="warning", timeout=15, markup=False)
        self._follow()
        self.set_interval(CHILD_CHECK_S, self._check_child)

    @work(exclusive=True, group="follow")
    async def _follow(self) -> None:
        # in a thread, so that the first picture is there before a library for HTTP has been imported
        client = await to_thread(import_module, "parallax_tui.client")
        pictures: AsyncGenerator[Live, None] = client.follow(self.control)
        async with aclosing(pictures):
            async for live in pictures:
                self._tell(live)

    def _tell(self, live: Live) -> None:
        """Take a new picture, and show it when the last one has stood long enough."""
        live = replace(live, last_words=self._last_words)
        urgent = live.connected != self.live.connected or live.ready != self.live.ready
        self.live = live
        if urgent:
            self._paint()
        elif self._paint_timer is None:
            waited_s = perf_counter() - self._painted_at
            self._paint_timer = self.set_timer(max(0.001, self._paint_s - waited_s), self._paint)

    def _paint(self) -> None:
        if self._paint_timer is not None:
            self._paint_timer.stop()
            self._paint_timer = None
        self._painted_at = perf_counter()
        if self.live.ready and not self._was_ready:
            self._was_ready = True
            if self.current_mode == "starting":
                self._early = self._handed_over()
                self.switch_mode("chat")
        for screen in self.screen_stack:
            if isinstance(screen, LiveScreen) and screen.is_mounted:
                screen.show(self.live)

    def _check_child(self) -> None:
        """Show what a dead node said last, wherever the person is."""
        words = self.child_problem() or ""
        if words != self._last_words:
            self._last_words = words
            self.live = replace(self.live, last_words=words)
            self._paint()

    def _open_chat(self) -> Screen[None]:
        from parallax_tui.screens.chat import ChatScreen

        self._chat = ChatScreen(*(self._early if any(self._early) else self._handed_over()))
        self._early = ("", "")
        return self._chat

    def _handed_over(self) -> tuple[str, str]:
        from parallax_tui.screens.starting import StartingScreen

        screens = self._screen_stacks.get("starting", ())  # also while another mode is shown; Textual is pinned
        first = next((screen for screen in screens if isinstance(screen, StartingScreen) and screen.is_mounted), None)
        return first.hand_over() if first is not None else ("", "")

    def action_topology(self) -> None:
        """To the topology and back."""
        if isinstance(self.screen, ModalScreen):
            return
        if self.current_mode == "topology":
            self.switch_mode("chat" if self._was_ready else "starting")
        else:
            self.switch_mode("topology")

    def action_help(self) -> None:
        from parallax_tui.screens.help import HelpScreen

        self.push_screen(HelpScreen())

    def action_palette(self) -> None:
        self.action_command_palette()

    def action_theme(self) -> None:
        self.search_themes()

    def action_interrupt(self) -> None:
        """Copy what is selected; else stop the running answer; a second press in time quits."""
        prompt = self.focused
        selected = prompt.selected_text if isinstance(prompt, Prompt) else ""
        if selected := selected or self.screen.get_selected_text() or "":
            self.copy_to_clipboard(selected)
            self.screen.clear_selection()
        elif self.quit_armed:
            self.exit()
        else:
            if self._chat is not None:
                self._chat.action_stop()
            self._arm(True)
            self.set_timer(ARMED_S, lambda: self._arm(False))

    def _arm(self, armed: bool) -> None:
        self.quit_armed = armed
        for screen in self.screen_stack:
            if isinstance(screen, LiveScreen):
                screen.show_keys()

    def _remember_theme(self, name: str) -> None:
        if name == self._remembered:
            return
        self._remembered = name
        try:
            theming.remember_choice(self.home.config.parent, name)
        except OSError as error:
            self.notify(f"the choice could not be kept: {error}", severity="warning", markup=False)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every action that means something on this screen."""
        if not isinstance(screen, LiveScreen):
            return
        for one in screen.offered():
            if one.in_palette:
                owner = self if one.scope == "app" else screen
                yield SystemCommand(one.title, one.tooltip, getattr(owner, f"action_{one.method}"))


def _starting() -> Screen[None]:
    from parallax_tui.screens.starting import StartingScreen

    return StartingScreen()


def _topology() -> Screen[None]:
    from parallax_tui.screens.topology import TopologyScreen

    return TopologyScreen()
