"""Replies against the official packages' own types: every field of theirs with its type, and no names but theirs and
those of ours that are known."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import BaseModel

OURS = {"parallax", "reasoning_content", "max_model_len"}

T = TypeVar("T", bound=BaseModel)


def strictly(kind: type[T], value: object, also: Collection[str] = ()) -> T:
    """`value` as `kind`; fails where it is not exactly one."""
    made = kind.model_validate(value, strict=True)
    _only_known(made, {*OURS, *also}, kind.__name__)
    return made


def _only_known(value: Any, also: set[str], where: str) -> None:
    if isinstance(value, BaseModel):
        extra = set(value.model_extra or {}) - also
        assert not extra, f"{where} has {sorted(extra)}"
        for name in type(value).model_fields:
            _only_known(getattr(value, name), also, f"{where}.{name}")
    elif isinstance(value, list):
        for each in value:
            _only_known(each, also, where)
