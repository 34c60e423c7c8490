"""Reads values of a config.json, which nobody has checked: each by name, kind and bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node.errors import DamagedModel, UnsupportedModel

MOST_CONFIG_BYTES = 4 * 1024 * 1024
"""Real ones take some kilobytes."""
MOST = 1 << 31
"""Of any whole number in it."""


@dataclass(frozen=True, slots=True)
class Config:
    """Values of a config by name."""

    values: Mapping[str, object]
    where: str
    """The file, for errors."""

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number, at least 0. `null` counts as absent."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST:
            raise self.damaged(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.damaged(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        if (value := self.number(key, default)) <= 0:
            raise self.damaged(key, value, "a number above 0")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.damaged(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.damaged(key, value, "a text")
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of numbers."""
        value = self._value(key, None)
        if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
            raise self.damaged(key, value, "a list of numbers")
        return [float(item) for item in value]

    def items(self, key: str) -> list[object] | None:
        """A list, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise self.damaged(key, value, "a list")
        return value

    def part(self, key: str) -> dict[str, object] | None:
        """An object, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.damaged(key, value, "an object")
        return value

    def has(self, key: str) -> bool:
        """Whether it is there and not null."""
        return self.values.get(key) is not None

    def damaged(self, key: str, value: object, expected: str) -> DamagedModel:
        """The error about a value."""
        return DamagedModel(self.where, f'"{key}" is {str(value)[:40]}, not {expected}')

    def unsupported(self, what: str, known: str) -> UnsupportedModel:
        """The error about something that is meant, but not served."""
        return UnsupportedModel(self.where, what[:80], known)

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise DamagedModel(self.where, f'"{key}" is missing')
            return default
        return value


def read_config(folder: Path) -> Config:
    """A model folder's config.json.

    Raises:
        DamagedModel: it is missing, too large, or no JSON object.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise DamagedModel(str(path), f"is larger than {MOST_CONFIG_BYTES} bytes")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedModel(str(path), f"cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedModel(str(path), f"is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise DamagedModel(str(path), "is no JSON object")
    return Config(values, str(path))
