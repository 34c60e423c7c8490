"""What this machine computes with: its device, and the backends that are installed, opened when a model needs them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from node.engine.backend import BACKENDS, Backend, BackendChoice, Device, LoadedStage, Suits
from node.engine.base import BackendInfo, BackendName, DeviceChoice, StageSpec
from node.engine.devices import choose_device
from node.engine.measure import measure
from node.errors import EngineError, LoadFailed
from node.wire.layer_range import layer_range
from node.wire.records import Hardware


class Backends:
    """Loads each model with the backend that suits it best, on one device."""

    def __init__(self, choice: DeviceChoice, threads: int) -> None:
        """Raises EngineError where the device is not there, or nothing that is installed computes on it."""
        self.device: Device = choose_device(choice)
        self._threads = threads
        self._open: dict[BackendName, Backend] = {}
        if not installed_on(self.device):
            wanted = "; ".join(
                f"{row.name}: {row.how_to_install}" for row in BACKENDS.values() if self.device in row.devices
            )
            raise EngineError(f"nothing is installed that computes on {self.device}; {wanted}")

    @property
    def infos(self) -> tuple[BackendInfo, ...]:
        """Of those that are installed."""
        return tuple(row.info for row in installed_on(self.device))

    def measure(self) -> Hardware:
        """Measure the device; takes well under 2 s."""
        return measure(self.device)

    def set_threads(self, threads: int) -> None:
        """Use that many processor threads from now on."""
        self._threads = threads
        for backend in self._open.values():
            backend.set_threads(threads)

    def load(self, spec: StageSpec) -> Generator[float | None, None, LoadedStage]:
        """Load a range bit by bit, as `Backend.load` does.

        Raises:
            LoadFailed: no backend here can, or as the backend says.
        """
        row = choose_backend(spec, self.device)
        if (backend := self._open.get(row.name)) is None:
            backend = self._open[row.name] = row.open(self.device)
            backend.set_threads(self._threads)
        return (yield from backend.load(spec))


def installed_on(device: Device) -> list[BackendChoice]:
    """The backends that are installed and compute on a device."""
    return [row for row in BACKENDS.values() if device in row.devices and row.is_installed]


def choose_backend(spec: StageSpec, device: Device) -> BackendChoice:
    """The backend that is to run a range: the one that was asked for, else the one that suits the model best.

    Raises:
        LoadFailed: it is not installed or cannot, with what to install; or none can, with each one's reason.
    """
    asked = layer_range(spec.start, spec.end)
    if spec.backend != "auto":
        if (row := BACKENDS.get(spec.backend)) is None:
            raise LoadFailed(asked, f"this version has no backend {spec.backend}; it has {', '.join(BACKENDS)}")
        if not row.is_installed:
            raise LoadFailed(asked, f"the backend {row.name} is not installed; {row.how_to_install}")
        if device not in row.devices:
            raise LoadFailed(asked, f"the backend {row.name} does not compute on {device}")
        suits = row.suits(Path(spec.model_folder), device, spec.quantise)
        if not suits.rank:
            raise LoadFailed(asked, f"the backend {row.name} cannot run this model: {suits.why_not}")
        return row
    rows = [row for row in BACKENDS.values() if device in row.devices]
    found = {row.name: row.suits(Path(spec.model_folder), device, spec.quantise) for row in rows}
    able = [row for row in rows if row.is_installed and found[row.name].rank]
    if able:
        return max(able, key=lambda row: found[row.name].rank)
    raise LoadFailed(asked, "; ".join(_why_not(row, found[row.name]) for row in rows))


def _why_not(row: BackendChoice, suits: Suits) -> str:
    if not suits.rank:
        return f"{row.name} cannot run this model: {suits.why_not}"
    return f"{row.name} could, but is not installed: {row.how_to_install}"
