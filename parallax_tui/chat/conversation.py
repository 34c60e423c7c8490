"""One conversation: questions and answers in turn, and what can be done with them.

Plain data that changes in place; whoever shows it compares `Message.number` and the text's length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from parallax_tui.chat.answers import Answered
from parallax_tui.chat.cleaning import clean

Status = Literal["running", "done", "stopped", "failed"]
_numbers = count(1)


@dataclass(slots=True)
class Message:
    """One question or one answer."""

    role: Literal["user", "assistant"]
    text: str
    status: Status = "done"
    figures: Answered | None = None
    """Of an answer that has ended."""
    problem: str = ""
    """Why an answer failed, for people."""
    number: int = field(default_factory=lambda: next(_numbers))
    """Unique in this process."""


@dataclass(slots=True)
class Conversation:
    """Messages in order; an answer follows each question."""

    messages: list[Message] = field(default_factory=list)
    _cleared: list[Message] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    """Everything that was asked, oldest first, also after a clear."""

    @property
    def running(self) -> Message | None:
        """The answer that is being written."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.status == "running" else None

    @property
    def last_answer(self) -> Message | None:
        """The latest answer that has text."""
        return next((m for m in reversed(self.messages) if m.role == "assistant" and m.text), None)

    @property
    def can_regenerate(self) -> bool:
        """Whether there is a question to answer again and no answer being written."""
        return self.running is None and bool(self.messages)

    @property
    def can_restore(self) -> bool:
        """Whether a cleared conversation can come back."""
        return not self.messages and bool(self._cleared)

    def ask(self, text: str) -> Message:
        """Add a question; returns the answer to write into."""
        text = clean(text)
        if not self.prompts or self.prompts[-1] != text:
            self.prompts.append(text)
        self.messages.append(Message("user", text))
        return self._begin()

    def regenerate(self) -> Message:
        """Drop the last answer; returns the one to write instead. Only where `can_regenerate`."""
        if self.messages[-1].role == "assistant":
            self.messages.pop()
        return self._begin()

    def _begin(self) -> Message:
        answer = Message("assistant", "", "running")
        self.messages.append(answer)
        return answer

    def clear(self) -> None:
        """Start anew; the old messages can be brought back until the next clear."""
        if self.messages:
            self._cleared, self.messages = self.messages, []

    def restore(self) -> None:
        """Bring back what the last `clear` took."""
        self.messages, self._cleared = self._cleared, []

    def request(self) -> list[dict[str, str]]:
        """The messages to send. Questions that got no text are left out with their answers: roles must alternate."""
        sent: list[dict[str, str]] = []
        for index, message in enumerate(self.messages):
            if message.role != "user":
                continue
            answer = self.messages[index + 1] if index + 1 < len(self.messages) else None
            if answer is None or answer.status == "running":
                sent.append({"role": "user", "content": message.text})
            elif answer.text:
                sent += [{"role": "user", "content": message.text}, {"role": "assistant", "content": answer.text}]
        return sent

    @staticmethod
    def figures(answer: Message, part: Answered) -> None:
        """Take in figures of the running answer; they may come in several parts."""
        answer.figures = answer.figures.with_counts(part) if answer.figures is not None else part

    @staticmethod
    def end(answer: Message, status: Status, problem: str = "") -> None:
        """The answer is written, or will never be."""
        answer.status, answer.problem = status, clean(problem)
