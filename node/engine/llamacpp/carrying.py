"""A stream's contents on their way from one context to another, which may have another number of streams.

The library writes them as: a mark, the stream's number, then for each of its caches the number of streams and for each
stream the number of its cells with what they hold, 0 for all streams but one. It takes them back only where the number
of streams is the same. Everything else in them is left as it is, and is the same for every stream.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from node.errors import EngineError

HEAD_BYTES = 8
"""Mark and number of the stream."""


@dataclass(frozen=True, slots=True)
class State:
    """What a stream held."""

    data: bytes
    stream: int
    streams: int
    """Of the context that it was in."""
    rest_bytes: int
    """At the end of `data`: what a second cache holds, or layers that keep a state; 0 where there is but one."""
    rest_is_cache: bool
    """Whether those have streams too."""
    first_is_cache: bool = True
    """Not where all layers keep a state."""


def carried(state: State, streams: int) -> bytes:
    """The same contents for a context of so many streams.

    Raises:
        EngineError: they are not laid out as told above.
    """
    if streams == state.streams or not state.first_is_cache:
        return state.data
    split = len(state.data) - state.rest_bytes
    first = _carried(state.data[HEAD_BYTES:split], state, streams)
    rest = state.data[split:]
    return state.data[:HEAD_BYTES] + first + (_carried(rest, state, streams) if rest and state.rest_is_cache else rest)


def _carried(cache: bytes, state: State, streams: int) -> bytes:
    before, after = 4 * state.stream, 4 * (state.streams - state.stream - 1)
    cells = cache[4 + before : len(cache) - after]
    (told,) = struct.unpack_from("<I", cache)
    others = cache[4 : 4 + before] + cache[len(cache) - after :]
    if told != state.streams or any(others) or len(others) != before + after:
        raise EngineError("llama.cpp lays a sequence's keys and values out otherwise than is known here")
    return struct.pack("<I", streams) + cells + bytes(4 * (streams - 1))
