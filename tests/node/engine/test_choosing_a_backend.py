"""Which backend runs a model: the one asked for, else the best of what is installed; with a reason where none can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from node.engine import backends, devices
from node.engine.backend import BACKENDS, BackendChoice, Device, Suits
from node.engine.backends import Backends, choose_backend
from node.engine.base import BackendName, Quantise, StageSpec
from node.errors import EngineError, LoadFailed

SPEC = StageSpec("/models/x", 0, 6, "float32", 1 << 20)


def row(name: BackendName, rank: int, *, module: str = "json", devices: tuple[Device, ...] = ("cpu",)) -> BackendChoice:
    def suits(folder: Path, device: Device, quantise: Quantise) -> Suits:
        return Suits(rank, "" if rank else f"it has no graph for {folder.name}")

    return replace(
        BACKENDS["torch"], name=name, devices=devices, modules=(module,), extra=name, suits=suits, packages=(name,)
    )


def table(monkeypatch: pytest.MonkeyPatch, *rows: BackendChoice) -> None:
    monkeypatch.setattr(backends, "BACKENDS", {each.name: each for each in rows})


def test_the_one_that_suits_the_model_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, row("torch", 10), row("ort", 50), row("llamacpp", 90, module="surely_not_here"))
    assert choose_backend(SPEC, "cpu").name == "ort"


def test_one_for_another_device_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, row("torch", 10, devices=("cpu", "cuda")), row("ort", 50))
    assert choose_backend(SPEC, "cuda").name == "torch"
    with pytest.raises(LoadFailed, match="the backend ort does not compute on cuda"):
        choose_backend(replace(SPEC, backend="ort"), "cuda")


def test_the_one_that_was_asked_for_is_taken_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, row("torch", 10), row("ort", 0), row("llamacpp", 90, module="surely_not_here"))
    assert choose_backend(replace(SPEC, backend="torch"), "cpu").name == "torch"
    with pytest.raises(LoadFailed, match="ort cannot run this model: it has no graph for x"):
        choose_backend(replace(SPEC, backend="ort"), "cpu")
    with pytest.raises(LoadFailed, match=r"not installed; pip install 'parallax-tui\[llamacpp\]'"):
        choose_backend(replace(SPEC, backend="llamacpp"), "cpu")
    with pytest.raises(LoadFailed, match="no backend mlx; it has torch, ort, llamacpp"):
        choose_backend(replace(SPEC, backend="mlx"), "cpu")


def test_where_none_can_each_ones_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, row("ort", 0), row("llamacpp", 90, module="surely_not_here"))
    with pytest.raises(LoadFailed) as caught:
        choose_backend(SPEC, "cpu")
    assert "ort cannot run this model: it has no graph for x" in str(caught.value)
    assert "llamacpp could, but is not installed: pip install 'parallax-tui[llamacpp]'" in str(caught.value)


def test_a_machine_on_which_nothing_is_installed_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, row("torch", 10, module="surely_not_here"))
    with pytest.raises(EngineError, match=r"nothing is installed that computes on cpu; torch: pip install"):
        Backends("cpu", 1)


def test_torch_is_not_asked_for_a_device_where_no_driver_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> list[Device]:
        raise AssertionError("it takes seconds to import")

    monkeypatch.setattr(devices, "may_have_gpu", lambda: False)
    monkeypatch.setattr(devices, "_devices_of_torch", asked)
    assert devices.choose_device("auto") == "cpu"
    assert devices.choose_device("cpu") == "cpu"


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "may_have_gpu", lambda: True)
    monkeypatch.setattr(devices, "_devices_of_torch", lambda: ["mps"])
    assert devices.choose_device("auto") == "mps"
    with pytest.raises(EngineError, match="there is no cuda device here that torch or MLX can use"):
        devices.choose_device("cuda")
    monkeypatch.setattr(devices, "_devices_of_torch", list)
    assert devices.choose_device("auto") == "cpu"
