"""A model in the library's memory: the whole file where it lies, or a part's file that we write and it maps.

Resource handling: `Model.free` gives everything back; a context must be freed before its model. A part's file is
memory without a name under Linux and a file in a folder of our own elsewhere, removed as soon as the library has it
mapped, or with the model where the system does not let go of mapped files (Windows).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from node.engine.llamacpp.cutting import Part, WholeModel
from node.engine.llamacpp.definitions import ROPE_WITH_SECTIONS
from node.engine.llamacpp.gguf_writing import read_through, unused_ranges, write
from node.engine.llamacpp.library import Library
from node.errors import LoadFailed

FOLDER_PREFIX = "parallax-layers-"
PUNCH_HOLE_KEEP_SIZE = 3
"""Linux's flags of fallocate."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the weights go and by which kernels they are used."""

    cards: tuple[Any, ...] = ()
    """Graphics cards, in the order of their use; empty: the processor."""
    repack: bool = False
    """Whether they may be brought into another order, which is faster and makes a row depend on its neighbours."""


class Model:
    """One that is loaded."""

    def __init__(self, library: Library, handle: Any, file: contextlib.ExitStack | None = None) -> None:
        self._library, self._file = library, file
        self.handle = handle
        llama = library.llama
        self.layers = int(llama.llama_model_n_layer(handle))
        self.width = int(llama.llama_model_n_embd(handle))
        self.vocabulary = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(handle)))
        self.nbytes = int(llama.llama_model_size(handle))
        self.positions_per_row = 4 if llama.llama_model_rope_type(handle) in ROPE_WITH_SECTIONS else 1
        """That the library wants with hidden rows. For token ids it makes them by itself."""
        self.keeps: Literal["all", "some", "states"] = (
            "states"
            if llama.llama_model_is_recurrent(handle)
            else "some"
            if llama.llama_model_is_hybrid(handle)
            else "all"
        )
        """Whether all layers keep keys and values of every token, so that a sequence can go back, or some or all of
        them a state instead."""

    def free(self) -> None:
        """Give it back. Harmless when repeated."""
        if self.handle is not None:
            self._library.llama.llama_model_free(self.handle)
            self.handle = None
        if self._file is not None:
            self._file.close()


def load_whole(library: Library, whole: WholeModel, placement: Placement, asked: str) -> Generator[None, None, Model]:
    """The model as it lies there: mapped, not copied. Yields after each piece that is read through: what the library
    does then, all at once, finds the file in the system's memory and takes little time, however slow the disk is.

    Raises:
        LoadFailed: the library refuses it, or a file cannot be read.
    """
    try:
        for path in whole.files:
            yield from read_through(path)
    except OSError as error:
        raise LoadFailed(asked, f"{error.filename or whole.files[0]}: cannot be read ({error.strerror})") from error
    params, kept = _params(library, placement)
    paths = [library.ffi.new("char[]", os.fsencode(path)) for path in whole.files]
    if len(paths) == 1:
        handle = library.llama.llama_model_load_from_file(paths[0], params)
    else:
        handle = library.llama.llama_model_load_from_splits(library.ffi.new("char *[]", paths), len(paths), params)
    del kept
    return _checked(library, handle, asked)


def load_part(library: Library, part: Part, placement: Placement, asked: str) -> Generator[None, None, Model]:
    """A part of a model. Yields after each piece that is written.

    Raises:
        LoadFailed: the library refuses it, or there is no room.
    """
    with contextlib.ExitStack() as written:
        try:
            out, path = _new_file(written)
            yield from write(out, part.entries, part.tensors)
        except OSError as error:
            raise LoadFailed(asked, f"its weights cannot be laid out: {error}") from error
        params, kept = _params(library, placement)
        handle = library.llama.llama_model_load_from_file(os.fsencode(path), params)
        del kept
        for begin, count in unused_ranges(part.entries, part.tensors):
            _give_back(out.fileno(), begin, count)
        # the mapping lasts; but Windows removes no file that is mapped
        return _checked(library, handle, asked, written.pop_all() if sys.platform == "win32" else None)


def _new_file(written: contextlib.ExitStack) -> tuple[BinaryIO, Path]:
    """A new file and the path that the library can open it by. It goes with `written`."""
    if sys.platform == "linux" and Path("/proc/self/fd").exists():
        descriptor = os.memfd_create("parallax-layers")
        return written.enter_context(os.fdopen(descriptor, "wb")), Path(f"/proc/self/fd/{descriptor}")
    remove_left_over()
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
    written.callback(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "layers.gguf"
    return written.enter_context(path.open("wb")), path


def _give_back(descriptor: int, begin: int, count: int) -> None:
    """Make a hole in a file in memory, where nothing is that anybody looks at. Where that cannot be it takes room."""
    if sys.platform != "linux":
        return
    pages = slice(-(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + count) // mmap.PAGESIZE * mmap.PAGESIZE)
    if pages.stop > pages.start:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        fallocate(descriptor, PUNCH_HOLE_KEEP_SIZE, pages.start, pages.stop - pages.start)


def remove_left_over() -> None:
    """Remove the folders of workers that ended without doing so themselves."""
    import psutil

    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        pid = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _params(library: Library, placement: Placement) -> tuple[Any, Any]:
    """The library's parameters, and what must live as long as they are used."""
    params = library.llama.llama_model_default_params()
    devices = library.ffi.new("void *[]", [*placement.cards, library.ffi.NULL])
    params.devices = devices
    params.n_gpu_layers = -1 if placement.cards else 0
    params.use_extra_bufts = placement.repack
    return params, devices


def _checked(library: Library, handle: Any, asked: str, file: contextlib.ExitStack | None = None) -> Model:
    if handle == library.ffi.NULL:
        if file is not None:
            file.close()
        raise LoadFailed(asked, f"llama.cpp refuses the model: {library.log.last_error()}")
    model = Model(library, handle, file)
    if library.llama.llama_model_has_encoder(handle):
        model.free()
        raise LoadFailed(asked, "the model has an encoder, and only models that go on with a text are served")
    return model
