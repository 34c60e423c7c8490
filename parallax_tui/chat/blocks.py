"""Where a growing Markdown text is final: blocks before that point are rendered once and never again."""

from __future__ import annotations

import re
from itertools import pairwise

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def cuts(text: str) -> list[int]:
    """Positions in `text` between blocks that no later text can change.

    A cut follows a blank line outside a code fence, where the next line is flush with the margin: an indented one may
    belong to the list above.
    """
    found: list[int] = []
    position = 0
    fence = ""
    after_blank = False
    for line in text.splitlines(keepends=True):
        if after_blank and not fence and line.strip() and not line[0].isspace():
            found.append(position)
        position += len(line)
        if match := _FENCE.match(line):
            mark, rest = match.groups()
            if not fence:
                fence = "" if mark[0] == "`" and "`" in rest else mark
            elif mark[0] == fence[0] and len(mark) >= len(fence) and not rest.strip():
                fence = ""
        after_blank = not line.strip()
    return found


def blocks(text: str) -> tuple[list[str], str]:
    """The settled blocks of `text`, and the open rest. Cut in the same places however the text arrived."""
    edges = [0, *cuts(text)]
    return [text[start:end] for start, end in pairwise(edges)], text[edges[-1] :]
