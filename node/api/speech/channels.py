"""gpt-oss writes messages to channels: `analysis` is thought, `final` is the answer, `commentary` may be to a tool."""

from __future__ import annotations

import re

from node.api.speech.reading import Reading, Script

_HEADER = re.compile(r"(?s)(?P<header>.{0,400}?)<\|message\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.\-]+)")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")


def channels(reading: Reading, *, calls: bool) -> Script[None]:
    """Message after message. Text without any marks is the answer.

    Args:
        calls: what is said to a tool is a call; else it is text.
    """
    while not reading.at_end:
        match = yield from reading.matches(_HEADER)
        if match is None:
            return
        channel, recipient = _CHANNEL.search(match["header"]), _RECIPIENT.search(match["header"])
        kind = channel[1] if channel is not None else "final"
        if recipient is not None and calls:
            out = reading.call(recipient[1])
            ended = yield from reading.pass_until(_ENDS, out)
            reading.call_ends()
        else:
            ended = yield from reading.pass_until(_ENDS, reading.think if kind == "analysis" else reading.say)
        if not ended:
            return
