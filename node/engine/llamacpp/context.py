"""One of the library's contexts: computes rows of several sequences on a loaded model, and holds their keys and values.

Each sequence has a stream. Rows of one call come out in another order than they went in, unless all its sequences have
the same number of rows and stand in the order of their streams: so a call is made of such alone. A batch that is larger
than the library was told to expect ends the process; none is.

Hidden rows are taken from the last layer's result while the graph runs: the library asks of every node whether it is
wanted, and stops at the one that is. Final norm and head, which a part that is not the last has as dummies, never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.engine.llamacpp.carrying import HEAD_BYTES, State, carried
from node.engine.llamacpp.definitions import F16, FLASH_ATTENTION_OFF, PARTIAL_ONLY
from node.engine.llamacpp.library import Library
from node.engine.llamacpp.model import Model
from node.engine.llamacpp.streams import Shape
from node.errors import EngineError

Rows = NDArray[np.float32]

MOST_ROWS, LEAST_ROWS = 512, 32
"""Of one call. Long prompts go in pieces."""
SCORES_BYTES = 128 * 1024 * 1024
"""What attention scores of one call may take: rows × heads × tokens of a stream, without flash attention."""

NO_ROOM = 1
"""What the library answers where a stream is full."""


class CallFailed(Exception):
    """The library could not compute a call; nothing of it is left in any stream."""

    def __init__(self, code: int, words: str) -> None:
        self.code = code
        super().__init__(f"llama.cpp answered {code}: {words}")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one sequence in a call."""

    stream: int
    position: int
    """Of the first row."""
    count: int
    logits: int
    """How many of the last rows are asked for the model's answer."""


@dataclass(frozen=True, slots=True)
class Way:
    """Which of the model's layers a call's rows go through."""

    enter: str = ""
    """The node of its graph that rows are put into; empty: they are given as embeddings."""
    leave: str = ""
    """The node that they are taken out of; empty: they go through the head to logits."""
    skips: bool = False
    """Whether layers lie before `enter`. They compute something that nobody looks at, for the graph has them."""


def after_layer(number: int) -> str:
    """The node with the result of a layer, counted in the model as it is loaded."""
    return f"l_out-{number}"


def rows_per_call(shape: Shape, heads: int) -> int:
    """As many as the scores' memory allows."""
    fitting = SCORES_BYTES // (4 * max(1, heads) * shape.tokens)
    return max(LEAST_ROWS, min(MOST_ROWS, fitting // LEAST_ROWS * LEAST_ROWS))


class Context:
    """Streams for keys and values, and what computes on them. `free` gives all of it back."""

    def __init__(
        self,
        library: Library,
        model: Model,
        shape: Shape,
        heads: int,
        threads: int,
        *,
        hidden: bool,
        enter: str = "",
        watched: bool = False,
        takes_ids: bool = False,
    ) -> None:
        """`hidden`: whether rows of the last layer are wanted, not logits. `enter`: the node that rows are put into,
        where they are not given as embeddings. `watched`: whether calls may go other ways, which costs some
        microseconds for each node of the graph. `takes_ids`: whether the model's own embedding is to be used.

        Raises:
            EngineError: there is not enough memory for it.
        """
        self._library, self._model, self._ffi = library, model, library.ffi
        self.shape, self._takes_ids = shape, takes_ids
        self.most_rows = rows_per_call(shape, heads)
        params = library.llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = shape.cells, shape.streams
        params.n_batch = params.n_ubatch = self.most_rows
        params.n_outputs_max = params.n_outputs_max_per_seq = self.most_rows
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = F16
        params.flash_attn_type = FLASH_ATTENTION_OFF  # it splits a row's sum by threads and length
        params.kv_unified = False
        self._own = Way(enter, after_layer(model.layers - 1) if hidden else "")
        self.watched = bool(hidden or enter or watched)
        """Whether calls may go other ways than its own."""
        self._out: Rows = np.zeros((self.most_rows if self.watched else 0, model.width), np.float32)
        self._filled = 0
        self._enter = self._leave = b""
        """Of the call under way, as C has names."""
        self._given: Rows = np.zeros((0, model.width), np.float32)
        self._entered = 0
        self._callback = self._ffi.callback("eval_callback", self._on_node, error=False)
        if self.watched:
            params.cb_eval = self._callback
        self._handle = library.llama.llama_init_from_model(model.handle, params)
        if self._handle == self._ffi.NULL:
            raise EngineError(
                f"llama.cpp has no memory for {shape.streams} sequences of {shape.tokens} tokens: "
                f"{library.log.last_error()}"
            )
        self._memory = library.llama.llama_get_memory(self._handle)
        self._streams = [self._ffi.new("llama_seq_id[1]", [stream]) for stream in range(shape.streams)]

    def free(self) -> None:
        """Give it back. Harmless when repeated."""
        if self._handle is not None:
            self._library.llama.llama_free(self._handle)
            self._handle = None

    def set_threads(self, threads: int) -> None:
        """Use that many processor threads from the next call on."""
        self._library.llama.llama_set_n_threads(self._handle, threads, threads)

    # --- calls ------------------------------------------------------------------------------------------------------

    def run(self, data: NDArray[np.int32] | Rows, pieces: Sequence[Piece], way: Way | None = None) -> Rows:
        """Token ids (T,) or hidden rows (T, hidden_size) of equally long pieces, in the order of their streams, to
        hidden rows (T, hidden_size) or the logits asked for (logits, vocab_size). They are overwritten by the next
        call. `way`: another than through all layers, where the context is watched.

        Raises:
            CallFailed: nothing has changed.
        """
        count, way = len(data), way or self._own
        assert way == self._own or self.watched
        assert count == sum(piece.count for piece in pieces) <= self.most_rows
        positions = np.concatenate([np.arange(p.position, p.position + p.count, dtype=np.int32) for p in pieces])
        wanted = np.concatenate([np.arange(p.count) >= p.count - p.logits for p in pieces]).astype(np.int8)
        if way.leave:  # the last layer leaves out whatever gives no output
            wanted[:] = way.leave == self._own.leave
        ones = np.ones(count, np.int32)
        sequences = self._ffi.new("llama_seq_id *[]", [self._streams[p.stream] for p in pieces for _ in range(p.count)])
        given = self._nothing(count) if way.skips else np.ascontiguousarray(data)
        if given.ndim == 2 and self._model.positions_per_row == 4:  # time, height, width alike, as for text
            positions = np.concatenate([positions, positions, positions, np.zeros_like(positions)])
        batch = self._ffi.new("llama_batch *")
        batch.n_tokens = count
        batch.token = self._at("llama_token *", given) if given.ndim == 1 else self._ffi.NULL
        batch.embd = self._at("float *", given) if given.ndim == 2 else self._ffi.NULL
        batch.pos, batch.n_seq_id = self._at("llama_pos *", positions), self._at("int32_t *", ones)
        batch.seq_id, batch.logits = sequences, self._at("int8_t *", wanted)
        self._filled = self._entered = 0
        self._enter, self._leave = _name(way.enter), _name(way.leave)
        if way.enter:
            self._given = np.ascontiguousarray(data, np.float32)
        if (code := self._library.llama.llama_decode(self._handle, batch[0])) != 0:
            self._undo(pieces)
            raise CallFailed(code, self._library.log.last_error())
        if (way.leave and self._filled != count) or (way.enter and self._entered != count):
            self._undo(pieces)
            raise CallFailed(0, f"it took {self._entered} and gave {self._filled} rows of {count}")
        if way.leave:
            return self._out[:count]
        self._library.llama.llama_synchronize(self._handle)
        return self._logits(np.flatnonzero(wanted))

    def _nothing(self, count: int) -> NDArray[np.int32] | Rows:
        """What layers whose results nobody looks at are given."""
        return np.zeros(count, np.int32) if self._takes_ids else np.zeros((count, self._model.width), np.float32)

    def _undo(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self.forget(piece.stream, piece.position)

    def _logits(self, rows: NDArray[np.intp]) -> Rows:
        """(logits, vocab_size); they lie one after another in the library's memory."""
        if not len(rows):
            return np.zeros((0, self._model.vocabulary), np.float32)
        first = self._library.llama.llama_get_logits_ith(self._handle, int(rows[0]))
        if first == self._ffi.NULL:
            raise CallFailed(0, self._library.log.last_error())
        if len(rows) == 1 or self._sorted_outputs(rows, first):
            nbytes = len(rows) * self._model.vocabulary * 4
            found: Rows = np.frombuffer(self._ffi.buffer(first, nbytes), np.float32)
            return found.reshape(len(rows), -1)
        return np.stack([self._row(int(row)) for row in rows])

    def _sorted_outputs(self, rows: NDArray[np.intp], first: Any) -> bool:
        last = self._library.llama.llama_get_logits_ith(self._handle, int(rows[-1]))
        return bool(last == first + (len(rows) - 1) * self._model.vocabulary)

    def _row(self, row: int) -> Rows:
        pointer = self._library.llama.llama_get_logits_ith(self._handle, row)
        return np.frombuffer(self._ffi.buffer(pointer, self._model.vocabulary * 4), np.float32)

    def _at(self, kind: str, array: NDArray[Any]) -> Any:
        return self._ffi.cast(kind, array.ctypes.data)

    def _on_node(self, tensor: Any, ask: bool, _: Any) -> bool:
        """Asked before a node is computed whether it is wanted; told afterwards, where the answer says to go on."""
        if ask:
            return self._is(tensor, self._leave) or self._is(tensor, self._enter)
        count, row_bytes = int(tensor.ne[1]), 4 * self._model.width
        fits = tensor.type == 0 and tensor.ne[0] == self._model.width
        if self._is(tensor, self._enter):
            if fits and self._entered + count <= len(self._given):
                rows = self._given[self._entered : self._entered + count]
                self._library.base.ggml_backend_tensor_set(tensor, self._at("void *", rows), 0, count * row_bytes)
                self._entered += count
            return True
        if fits and self._filled + count <= len(self._out):
            rows = self._out[self._filled : self._filled + count]
            self._library.base.ggml_backend_tensor_get(tensor, self._at("void *", rows), 0, count * row_bytes)
            self._filled += count
        return False

    def _is(self, tensor: Any, name: bytes) -> bool:
        return bool(name) and self._ffi.buffer(tensor.name, len(name))[:] == name

    # --- streams ----------------------------------------------------------------------------------------------------

    def forget(self, stream: int, position: int = 0) -> bool:
        """Drop keys and values at a position and after it; whether that could be done."""
        if position == 0:
            return bool(self._library.llama.llama_memory_seq_rm(self._memory, stream, -1, -1))
        return bool(self._library.llama.llama_memory_seq_rm(self._memory, stream, position, -1))

    def state_bytes(self, stream: int) -> int:
        """That a stream's contents take when they are taken out."""
        return int(self._library.llama.llama_state_seq_get_size(self._handle, stream))

    def take_state(self, stream: int) -> State:
        """A copy of a stream's contents, bit for bit; of layers with windows without what is outside of them."""
        data = np.zeros(self.state_bytes(stream), np.uint8)
        got = self._library.llama.llama_state_seq_get_data(self._handle, self._at("uint8_t *", data), len(data), stream)
        if got != len(data):
            raise EngineError(f"llama.cpp gave {got} of {len(data)} bytes of a sequence's keys and values")
        partial = self._library.llama.llama_state_seq_get_size_ext(self._handle, stream, PARTIAL_ONLY)
        rest = int(partial) - HEAD_BYTES if partial != len(data) else 0
        keeps = self._model.keeps
        return State(data.tobytes(), stream, self.shape.streams, rest, keeps == "all", keeps != "states")

    def put_state(self, stream: int, state: State) -> None:
        """Fill an empty stream. Raises EngineError."""
        data = np.frombuffer(carried(state, self.shape.streams), np.uint8)
        source = self._at("const uint8_t *", data)
        if self._library.llama.llama_state_seq_set_data(self._handle, source, len(data), stream) != len(data):
            why = self._library.log.last_error()
            raise EngineError(f"llama.cpp took a sequence's keys and values back only in part: {why}")


def _name(node: str) -> bytes:
    """As C compares it; empty stays empty and is nobody's."""
    return node.encode() + b"\0" if node else b""
