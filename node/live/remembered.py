"""The swarm's model, last epoch and settings, from one run of a home to the next."""

from __future__ import annotations

import json
import logging
import time
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
    """What a restarted node still knows. A file that cannot be read is as good as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = trio.CapacityLimiter(1)
        self.model: ModelRef | None = None
        self.epoch = 0
        self.settings = PlanSettings()
        try:
            fields = json.loads(path.read_bytes())
            model, epoch = msgspec.convert(fields["model"], ModelRef), msgspec.convert(fields["epoch"], Epoch)
            settings = msgspec.convert(fields.get("settings", {}), PlanSettings)
            if epoch > most_epoch(time.time()):
                raise ValueError(f"no planning has led to its epoch {epoch}")
            self.model, self.epoch, self.settings = model, epoch, settings  # all of it or nothing
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:  # ValidationError is a ValueError
            log.warning("%s cannot be read (%s); starting without it", path, error)

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
