"""How clients ask a model to think, much, little or not at all, said to its template."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from node.api.dialects.fields import begins, decoded, is_raw, object_of, shown, text_of
from node.errors import BadRequest

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
"""Names that are ours in a template."""


def by_effort(effort: str | None, where: str = "reasoning_effort") -> tuple[dict[str, object], bool | None]:
    """Options for a template, and whether the model shall think. Raises BadRequest."""
    if effort is None:
        return {}, None
    if effort not in EFFORTS:
        raise BadRequest(where, f"must be one of {', '.join(EFFORTS)}, not {shown(effort)}")
    if effort == "none":
        return switched(False), False
    known = {"minimal": "low", "xhigh": "high", "max": "high"}.get(effort, effort)
    return {**switched(True), "reasoning_effort": known}, None


def switched(on: bool) -> dict[str, object]:
    """The two names that families have for the same switch."""
    return {"enable_thinking": on, "thinking": on}


def by_switch(raw: Raw, where: str) -> bool | None:
    """`true`, `false`, or an object with a type: enabled, adaptive, disabled. Raises BadRequest."""
    if is_raw(raw, b"null"):
        return None
    if begins(raw, b"{"):
        kind = object_of(raw, where).get("type")
        if kind in ("enabled", "adaptive", "auto"):
            return True
        if kind == "disabled":
            return False
        raise BadRequest(f"{where}.type", "must be enabled, adaptive or disabled")
    value: Any = decoded(raw, bool, where)
    return bool(value)


def template_options(raw: Raw, where: str = "chat_template_kwargs") -> dict[str, object]:
    """What a client says to the template by itself. Raises BadRequest."""
    if is_raw(raw, b"null"):
        return {}
    options = object_of(raw, where)
    for name in options:
        if name in RESERVED or name.endswith("_token"):
            raise BadRequest(f"{where}.{name[:80]}", "is set by the server")
    return options


def effort_of(raw: Raw, where: str) -> str | None:
    """A text, or none. Raises BadRequest."""
    return None if is_raw(raw, b"null") else text_of(raw, where)
