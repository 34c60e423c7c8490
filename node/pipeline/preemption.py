"""Where the KV cache is full and a sequence needs more of it: which ones are ended so that the others go on.

Nothing is lost by that: the head of an ended one has its tokens, and has them computed again when there is room.
"""

from __future__ import annotations

import logging
from math import ceil

import trio

from node.engine.base import Stage
from node.pipeline.endings import Endings
from node.pipeline.kv_room import in_blocks
from node.pipeline.seats import Needs, Taken, to_preempt
from node.pipeline.sessions import Sessions
from node.pipeline.stage_session import StageSession
from node.pipeline.work import Work

log = logging.getLogger(__name__)


class Preemption:
    """Of this node's sequences."""

    def __init__(self, sessions: Sessions, endings: Endings) -> None:
        self._sessions, self._endings = sessions, endings

    def make_room(self, starved: list[Work], free_tokens: int) -> None:
        """End sequences so that all steps that found no room have it, or end theirs.

        Args:
            starved: of one batch, and so of one stage.
            free_tokens: that a sequence over all of the stage's layers could still take.
        """
        stage = starved[0].session.stage
        free_bytes = free_tokens * stage.info.kv_bytes_per_token
        needs: list[Needs[StageSession]] = []
        for work in starved:
            session = work.session
            if session in self._sessions:
                needed_bytes = _needed_bytes(work)
                if needed_bytes + ceil(stage.info.block_tokens * session.token_bytes) <= free_bytes:
                    reason = f"{work.at + work.taken} tokens are more than its layers can have of one sequence here"
                    self._endings.end(session, reason, "unfit")
                else:
                    needs.append(Needs(taken(session), needed_bytes))
        closing_bytes = self._endings.closing_bytes(stage)
        ended = to_preempt(self._taken_of(stage), needs, free_bytes + closing_bytes, _total_bytes(stage))
        if not ended and not closing_bytes and needs:  # the engine counts otherwise, and would say so for ever
            ended = [max(needs, key=lambda need: need.taken.number).taken.item]
        for session in ended:
            if session.suspended_s is not None:
                self._endings.drop(session)
            else:
                reason = f"its {session.kv_tokens} tokens made room for others in the KV cache"
                log.info("a sequence of %s is ended: %s", session.head[-8:], reason)
                self._endings.end(session, reason, "preempted")
        self._endings.wake()

    def _taken_of(self, stage: Stage) -> list[Taken[StageSession]]:
        return [taken(session) for session in self._sessions.on(stage)]


def taken(session: StageSession) -> Taken[StageSession]:
    """What it takes of the KV cache."""
    open_for_s = trio.current_time() - session.opened_s
    suspended = session.suspended_s is not None
    return Taken(session, session.head, session.reserved_bytes, session.since_s, suspended, open_for_s)


def _total_bytes(stage: Stage) -> int:
    return stage.info.kv_tokens * stage.info.kv_bytes_per_token


def _needed_bytes(work: Work) -> int:
    """Beyond what its sequence has."""
    session = work.session
    wanted = in_blocks(work.at + work.taken, session.stage.info.block_tokens)
    return max(0, ceil(wanted * session.token_bytes) - session.reserved_bytes)
