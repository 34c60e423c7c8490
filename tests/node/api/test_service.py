"""What the journal tells of a request, however it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import trio

from node.api.chat_request import parse_chat_request
from node.api.service import Service
from node.journal.log import Journal
from node.journal.state import KEPT_REQUESTS
from node.models import ChatModel
from node.pipeline.dispatch import Dispatcher
from node.pipeline.head import Generation, TokenStream
from node.wire.events import RequestFinished, RequestStarted
from node.wire.frames import Hop
from node.wire.ids import RequestId
from tests.fakes.node_control import FakeHere
from tests.fakes.swarms import DESK, plan

RECOMMENDED = SimpleNamespace(temperature=0.0, top_p=1.0, top_k=0)
CHAT_MODEL = SimpleNamespace(
    context_tokens=100, stop_tokens=(), recommended=RECOMMENDED, render=lambda messages: [1, 2], stream=lambda: None
)


class ServingHere(FakeHere):
    def chat_model(self) -> ChatModel:
        return cast("ChatModel", CHAT_MODEL)


class SilentDispatcher:
    """Opens a chain on which no token ever comes."""

    @asynccontextmanager
    async def generate(
        self, generation: Generation, request_id: str, started: Callable[[tuple[Hop, ...]], None]
    ) -> AsyncIterator[TokenStream]:
        started((Hop(DESK, 0, 30),))
        yield cast("TokenStream", None)


def test_a_cancelled_request_is_told_however_many_came_after_it() -> None:
    journal = Journal(DESK)
    service = Service(ServingHere(plan(), ()), cast("Dispatcher", SilentDispatcher()), journal)
    request = parse_chat_request(b'{"messages": [{"role": "user", "content": "hello"}]}')
    before = journal.state.seq

    async def leave_in_the_middle() -> str:
        async with service.answer(request) as answer:
            for number in range(KEPT_REQUESTS):
                journal.append(RequestStarted(RequestId(f"{number}"), 1, ()))
            return answer.request_id

    request_id = trio.run(leave_in_the_middle)
    events = [numbered.event for numbered in journal.after(before)]
    ended = [event for event in events if isinstance(event, RequestFinished)]
    assert [(event.request_id, event.reason) for event in ended] == [(request_id, "cancelled")]
