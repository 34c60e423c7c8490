"""Headers that tell where an answer was made and where its time went."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import quote

from node.pipeline.answer import AnswerTiming

if TYPE_CHECKING:
    from node.api.service import Answer

MOST_HOPS = 32
"""In a header; a longer chain is cut."""

Headers = list[tuple[bytes, bytes]]


def route_headers(timing: AnswerTiming) -> Headers:
    """The nodes of the chain with their layers, in order: `desk=0-9, attic=10-29`. Names are percent-encoded."""
    hops = timing.hops()
    named = [f"{_name(hop.name)}={hop.start}-{hop.end - 1}" for hop in hops[:MOST_HOPS]]
    return [(b"x-parallax-route", ", ".join([*named, "..."] if len(hops) > MOST_HOPS else named).encode())]


def timing_headers(answer: Answer, *, whole: bool) -> Headers:
    """`Server-Timing`: queue and ttft, each hop's compute, and the total of an answer that is whole."""
    timing = answer.timings[0]
    parts = [f"queue;dur={answer.queued_ms:.1f}", f"ttft;dur={timing.ttft_ms:.1f}"]
    for number, hop in enumerate(timing.hops()[:MOST_HOPS]):
        parts.append(f'hop{number};desc="{_name(hop.name)}";dur={hop.wire_ms + hop.queue_ms + hop.compute_ms:.2f}')
    if whole:
        parts.append(f"total;dur={(perf_counter() - answer.arrived_s) * 1e3:.1f}")
    return [(b"server-timing", ", ".join(parts).encode())]


def _name(name: str) -> str:
    return quote(name, safe="")[:120]
