"""The swarm's model, last epoch and settings, from one run of a home to the next."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import trio

from node.home import write_private
from node.wire.models import ModelRef
from node.wire.plans import Plan, PlanSettings, most_epoch

log = logging.getLogger(__name__)

Epoch = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Remembered:
    """What a restarted node still knows. A file that cannot be read is as good as none, but is not lost: it stays
    beside the one that is written next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = trio.CapacityLimiter(1)
        self.model: ModelRef | None = None
        self.epoch = 0
        self.settings = PlanSettings()
        self.problems: list[str] = []
        """What of the file was not taken, as sentences for people."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self._refuse(f"{path} cannot be read ({error}); starting without the model and the settings in it")
            return
        try:
            fields = json.loads(content)
            if not isinstance(fields, dict):
                raise ValueError("it is no JSON object")
        except (ValueError, RecursionError) as error:
            self._keep(content, f"{path} is damaged ({error}); starting without the model and the settings in it")
            return
        refused = [name for name, take in self._parts() if not self._took(name, take, fields)]
        if refused:
            self._keep(content, f"{path}: what it says of {' and '.join(refused)} cannot be; the rest of it is used")

    def _parts(self) -> tuple[tuple[str, Callable[[dict[str, object]], None]], ...]:
        """One that cannot be takes none of the others with it."""
        return ("the model", self._take_model), ("the epoch", self._take_epoch), ("the settings", self._take_settings)

    def _took(self, name: str, take: Callable[[dict[str, object]], None], fields: dict[str, object]) -> bool:
        try:
            take(fields)
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValidationError is a ValueError
            log.warning("%s: %s: %s", self._path, name, error)
            return False
        return True

    def _take_model(self, fields: dict[str, object]) -> None:
        self.model = msgspec.convert(fields["model"], ModelRef)

    def _take_epoch(self, fields: dict[str, object]) -> None:
        epoch = msgspec.convert(fields["epoch"], Epoch)
        if epoch > most_epoch(time.time()):
            raise ValueError(f"no planning has led to epoch {epoch}")
        self.epoch = epoch

    def _take_settings(self, fields: dict[str, object]) -> None:
        self.settings = msgspec.convert(fields.get("settings", {}), PlanSettings)

    def _refuse(self, problem: str) -> None:
        log.warning("%s", problem)
        self.problems.append(problem)

    def _keep(self, content: bytes, problem: str) -> None:
        """A file of which not all is used: the next plan's is written in its place."""
        beside = self._path.with_name(f"{self._path.name}.refused")
        try:
            write_private(beside, content)
            problem += f"; it is kept as {beside.name}"
        except OSError as error:
            log.warning("%s cannot be written: %s", beside, error)
        self._refuse(problem)

    async def remember(self, plan: Plan) -> None:
        """Note a plan that has been served. In a thread, for an SD card takes 200 ms to have it for good.

        A disk that does not take it is no reason to stop serving.
        """
        self.model, self.epoch, self.settings = plan.model, plan.epoch, plan.settings
        fields = msgspec.to_builtins({"model": plan.model, "epoch": plan.epoch, "settings": plan.settings})
        try:
            await trio.to_thread.run_sync(write_private, self._path, json.dumps(fields).encode(), limiter=self._writing)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
