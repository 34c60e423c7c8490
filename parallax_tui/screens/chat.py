"""The chat: asks the node, shows the answer as it comes, stops it on request."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Middle
from textual.message import Message as TextualMessage
from textual.worker import Worker

from parallax_tui.actions import Action, bindings
from parallax_tui.chat import Answered, Conversation, Message, Piece, Refused
from parallax_tui.chat.exchange import exchange
from parallax_tui.screens.live_screen import LiveScreen
from parallax_tui.state.live import Live
from parallax_tui.state.welcome import welcome
from parallax_tui.widgets.lines import Lines
from parallax_tui.widgets.prompt import Prompt
from parallax_tui.widgets.transcript import Transcript

SLOW_FLUSH_S = 0.4


class ChatScreen(LiveScreen):
    """One conversation with the swarm's model."""

    SCOPES: ClassVar[tuple[str, ...]] = ("chat", "prompt", "app")
    BINDINGS = bindings("chat")
    AUTO_FOCUS = "Prompt"
    DEFAULT_CSS = """
    ChatScreen {
        & > Middle { height: 1fr; padding: 0 2; display: none; }
        &.-empty > Middle { display: block; }
        &.-empty > Transcript { display: none; }
        & > Prompt { margin: 0 1; }
    }
    """

    class Came(TextualMessage):
        """Something of an answer came. An answer that was dropped meanwhile is passed over."""

        def __init__(self, answer: Message, part: Piece | Answered | Refused | None) -> None:
            super().__init__()
            self.answer, self.part = answer, part

    def __init__(self, question: str = "", draft: str = "") -> None:
        """A `question` that was asked before there was a chat is asked at once, a `draft` goes on being written."""
        super().__init__()
        self._question, self._draft = question, draft
        self.conversation = Conversation()
        self._worker: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        slow = self.owner.slow_link
        with Middle():
            yield Lines(id="welcome")
        yield Transcript(flush_s=SLOW_FLUSH_S) if slow else Transcript()
        yield Prompt()
        yield from super().compose()

    def on_mount(self) -> None:
        self.transcript.code_style = self.owner.code_style
        self.owner.theme_changed_signal.subscribe(self, lambda _: self.transcript.repaint_all(self.owner.code_style))
        self._changed()
        self.prompt.text = self._draft
        self.prompt.move_cursor(self.prompt.document.end)
        if self._question:
            self._answer(self.conversation.ask(self._question))
            self.prompt.remember(self.conversation.prompts)

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.transcript.code_style = self.owner.code_style  # the theme may have changed meanwhile
        self.transcript.show(self.conversation.messages)

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)

    def show(self, live: Live) -> None:
        super().show(live)
        self.query_one("#welcome", Lines).show(partial(welcome, live))

    def offers(self, action: Action) -> bool:
        match action.id:
            case "chat.stop":
                return self.conversation.running is not None
            case "prompt.send" | "prompt.new-line":
                return self.conversation.running is None
            case "chat.regenerate":
                return self.conversation.can_regenerate
            case "chat.clear":
                return bool(self.conversation.messages) or self.conversation.can_restore
            case "chat.copy":
                return self.conversation.last_answer is not None
            case _:
                return True

    @on(Prompt.Held)
    def hold(self) -> None:
        """Say why the question stays where it is."""
        self.notify("an answer is being written; esc stops it", timeout=3, markup=False)

    @on(Prompt.Sent)
    def ask(self, event: Prompt.Sent) -> None:
        """Ask the node."""
        self._answer(self.conversation.ask(event.text))
        self.prompt.remember(self.conversation.prompts)

    def _answer(self, answer: Message) -> None:
        self._worker = self._receive(answer)
        self._changed(at_once=True)

    @work(exclusive=True, group="answer")
    async def _receive(self, answer: Message) -> None:
        """Reads the answer and posts what comes; only handlers touch widgets."""
        parts = exchange(self.owner.control, self.owner.live.model, self.conversation.request())
        async with aclosing(parts):
            async for part in parts:
                self.post_message(self.Came(answer, part))
        self.post_message(self.Came(answer, None))

    @on(Came)
    def take(self, event: Came) -> None:
        """Write a part of the running answer into the conversation."""
        answer, part = event.answer, event.part
        if answer is not self.conversation.running:
            return
        match part:
            case Piece(text=text):
                answer.text += text
                self.transcript.show(self.conversation.messages)
                return
            case Answered():
                self.conversation.figures(answer, part)
                return
            case Refused(reason=reason):
                self.conversation.end(answer, "failed", reason)
            case None:
                self.conversation.end(answer, "done")
        self._changed()

    def action_stop(self) -> None:
        """Stop the running answer; what was written stays. Closing the connection tells the node."""
        answer = self.conversation.running
        if answer is None:
            return
        if self._worker is not None:
            self._worker.cancel()
        self.conversation.end(answer, "stopped")
        self._changed()

    def action_regenerate(self) -> None:
        if self.conversation.can_regenerate:
            self._answer(self.conversation.regenerate())

    def action_clear(self) -> None:
        if self.conversation.can_restore:
            self.conversation.restore()
        else:
            self.action_stop()
            self.conversation.clear()
        self._changed(at_once=True)

    def action_copy(self) -> None:
        """By OSC 52, which also works over ssh; terminals that do not know it ignore it."""
        if (answer := self.conversation.last_answer) is not None:
            self.app.copy_to_clipboard(answer.text)
            self.notify("the answer was sent to the clipboard", timeout=3, markup=False)

    def action_page_up(self) -> None:
        self.transcript.scroll_page_up(animate=False)

    def action_page_down(self) -> None:
        self.transcript.scroll_page_down(animate=False)

    def action_end(self) -> None:
        self.transcript.end()

    def _changed(self, *, at_once: bool = False) -> None:
        self.set_class(not self.conversation.messages, "-empty")
        self.prompt.accepts = self.conversation.running is None
        self.transcript.show(self.conversation.messages, at_once=at_once)
        self.show_keys()
