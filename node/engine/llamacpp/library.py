"""llama.cpp's libraries of the installed wheel: found, opened once, checked, and made to log into our log.

Resource handling: the libraries stay in the process until it ends; models and contexts are their makers' to free.
Error handling: whatever keeps them from being used (no wheel, another version, a struct laid out otherwise) is one
EngineError that says so; nothing has been called by then that could crash.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from collections import deque
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from node.engine.llamacpp.definitions import (
    CONTEXT_DEFAULTS,
    DEFINITIONS,
    DEVICE_CPU,
    DEVICE_GPU,
    DEVICE_INTEGRATED_GPU,
    GGML_BASE_DEFINITIONS,
    GGML_DEFINITIONS,
    LOG_CONTINUED,
    LOG_ERROR,
    MODEL_DEFAULTS,
    WHEEL,
    WHEEL_VERSION,
    differences,
)
from node.errors import EngineError

logger = logging.getLogger(__name__)

ERRORS_KEPT = 4
"""Of the library's own last words, for the sentence that says why a model was refused."""
ERROR_TEXT_LIMIT = 300

HOW_TO_INSTALL = "pip install 'parallax-tui[llamacpp]'"


class Library:
    """What can be called."""

    def __init__(self, ffi: Any, llama: Any, ggml: Any, base: Any, log: _Log, modules: Path) -> None:
        self.ffi = ffi
        self.llama, self.ggml, self.base = llama, ggml, base
        """libllama, libggml and libggml-base."""
        self.log = log
        self.version = WHEEL_VERSION
        self._modules = modules
        """The folder of what computes: one library per kind of device."""
        self._loaded: set[str] = set()

    def load_processor(self) -> None:
        """Make the processor known. No driver of a graphics card is asked for anything."""
        if "cpu" in self._loaded:
            return
        file = _needed(self._modules.parent, "ggml-cpu")
        if self.ggml.ggml_backend_load(os.fsencode(file)) == self.ffi.NULL:
            raise EngineError(f"{file}: llama.cpp cannot use this processor: {self.log.last_error()}")
        self._loaded.add("cpu")

    def load_cards(self) -> None:
        """Make graphics cards known that its other modules find (Metal, Vulkan); harmless where there are none."""
        self.load_processor()
        for name in ("ggml-metal", "ggml-vulkan"):
            file = _file(self._modules.parent, name)
            if name not in self._loaded and file is not None:
                self.ggml.ggml_backend_load(os.fsencode(file))  # NULL where its driver is missing
                self._loaded.add(name)

    def devices(self, *kinds: int) -> list[Any]:
        """The known devices of these kinds."""
        every = [self.ggml.ggml_backend_dev_get(number) for number in range(self.ggml.ggml_backend_dev_count())]
        return [device for device in every if self.base.ggml_backend_dev_type(device) in kinds]

    def cards(self) -> list[Any]:
        """Graphics cards, those with memory of their own first."""
        return self.devices(DEVICE_GPU) + self.devices(DEVICE_INTEGRATED_GPU)

    def processors(self) -> list[Any]:
        """The processor, if it is known."""
        return self.devices(DEVICE_CPU)

    def text(self, pointer: Any) -> str:
        """A C string."""
        return str(self.ffi.string(pointer).decode(errors="replace"))


class _Log:
    """The library's log. Called by it from whatever thread it is on."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=ERRORS_KEPT)

    def write(self, level: int, text: str) -> None:
        line = text.rstrip("\n")
        if level != LOG_CONTINUED and line:
            logger.debug("%s", line)
        if level == LOG_ERROR and line:
            self._errors.append(line)

    def last_error(self) -> str:
        """What it complained about first since this was asked last; of its errors the first is the cause."""
        first = self._errors[0] if self._errors else "it gave no reason"
        self._errors.clear()
        return first[:ERROR_TEXT_LIMIT]


def installed_version() -> str | None:
    """Of the wheel; None where it is not there."""
    try:
        return version(WHEEL)
    except PackageNotFoundError:
        return None


@cache
def open_library() -> Library:
    """The library, opened and checked.

    Raises:
        EngineError: it is not installed, is another version than the one whose structs we know, or does not load.
    """
    if (found := installed_version()) is None:
        raise EngineError(f"llama.cpp's library is not installed; {HOW_TO_INSTALL}")
    if found != WHEEL_VERSION:
        raise EngineError(f"{WHEEL} {found} is installed, but {WHEEL_VERSION} is needed; {HOW_TO_INSTALL}")
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))  # not imported: it would load libraries that we do not use
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"{WHEEL} is installed without its files; install it again: {HOW_TO_INSTALL}")
    return _open(Path(next(iter(spec.submodule_search_locations))))


def _open(package: Path) -> Library:
    from cffi import FFI

    ffi = FFI()
    for definitions in (DEFINITIONS, GGML_BASE_DEFINITIONS, GGML_DEFINITIONS):
        ffi.cdef(definitions)
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an assertion of the library would start a debugger
    files = [_needed(package, name) for name in ("ggml-base", "ggml", "llama")]
    try:
        for file in files:
            ctypes.CDLL(str(file))  # Windows finds a library's needs only among those that are loaded already
        base, ggml, llama = (ffi.dlopen(str(file)) for file in files)
    except OSError as error:
        raise EngineError(f"llama.cpp's library does not load: {error}; {HOW_TO_INSTALL}") from error
    log = _Log()
    library = Library(ffi, llama, ggml, base, log, package / "bin")
    check_defaults(library)

    @ffi.callback("log_callback")  # type: ignore[untyped-decorator]
    def write(level: int, text: Any, _: Any) -> None:
        log.write(level, library.text(text))

    log.callback = write  # type: ignore[attr-defined]  # as long as the library may call it
    llama.llama_log_set(write, ffi.NULL)
    llama.llama_backend_init()
    return library


def check_defaults(library: Library) -> None:
    """Compare the default values of its structs with those that we know.

    Raises:
        EngineError: it is another version than the one that our definitions are of.
    """
    for what, defaults, expected in (
        ("models", library.llama.llama_model_default_params(), MODEL_DEFAULTS),
        ("contexts", library.llama.llama_context_default_params(), CONTEXT_DEFAULTS),
    ):
        found = {name: getattr(defaults, name) for name in expected}
        if different := differences(found, expected):
            raise EngineError(
                f"llama.cpp's library is laid out otherwise than version {WHEEL_VERSION} of {WHEEL}: its parameters "
                f"for {what} say that {different[0]}; install it again: {HOW_TO_INSTALL}"
            )


def _file(package: Path, name: str) -> Path | None:
    """The file of one of its libraries, by the names that they have on Linux, macOS and Windows."""
    return next((package / place for place in _places(name) if (package / place).exists()), None)


def _needed(package: Path, name: str) -> Path:
    if (file := _file(package, name)) is None:
        where = " or ".join(_places(name))
        raise EngineError(f"{package} holds no {where}; install {WHEEL} again: {HOW_TO_INSTALL}")
    return file


def _places(name: str) -> list[str]:
    if sys.platform == "win32":
        return [f"bin/{name}.dll"]
    return [f"{folder}/lib{name}{end}" for folder in ("lib", "bin") for end in (".so.0", ".0.dylib", ".so")]
