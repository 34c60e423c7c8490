"""Quantised matrices of transformers' checkpoints, exactly as their methods define them: as blocks, or as numbers.

    gptq      X.qweight (K/p, N) and X.qzeros (G, N/p), p to a word, the first lowest; X.scales (G, N), X.g_idx (K)
    awq       X.qweight (K, N/8), X.qzeros (G, N/8), words in the order 0 2 4 6 1 3 5 7; X.scales (G, N)
    packed    X.weight_packed (N, K/p), X.weight_scale (N, G), X.weight_zero_point (N/p, G), X.weight_shape,
              X.weight_g_idx
    integers  X.weight int8 (N, K), X.weight_scale (N, G), X.weight_zero_point
    fp8       X.weight (N, K), and one scale for each square, row or matrix: X.weight_scale_inv or X.weight_scale
    mxfp4     X_blocks (E, N, K/32, 16), X_scales (E, N, K/32): eighths of a power of two

K columns, N rows, G groups of columns, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.errors import DamagedModel
from node.weights.blocks import Bits, Blocks, Bytes, Floats, Matrix
from node.weights.ggml_grids import MXFP4_VALUES
from node.weights.hub_files import HubFiles
from node.weights.hub_methods import Method

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ's the n-th number is."""
BLOCK_SIZES = (128, 64, 32, 16)
MOST_BLOCK = 256

SIGNS = {
    "gptq": ".qweight",
    "awq": ".qweight",
    "packed": ".weight_packed",
    "integers": ".weight_scale",
    "fp8": (".weight_scale_inv", ".weight_scale"),
    "mxfp4": "_blocks",
}
"""Of each method the ending of a tensor that only what is quantised has."""


def quantised_tensor(store: HubFiles, base: str, method: Method) -> str | None:
    """The name of the tensor that holds a matrix's numbers, where it is quantised."""
    signs = SIGNS[method.name]
    for sign in (signs,) if isinstance(signs, str) else signs:
        if f"{base}{sign}" in store:
            return f"{base}.weight" if method.name in ("integers", "fp8") else f"{base}{sign}"
    return None


def read_quantised(store: HubFiles, base: str, method: Method) -> Matrix:
    """The matrix of that name.

    Raises:
        DamagedModel: its parts do not fit together.
    """
    try:
        return _READERS[method.name](store, base, method)
    except (ValueError, IndexError, KeyError) as error:
        where = str(store.file_of[quantised_tensor(store, base, method) or base])
        raise DamagedModel(where, f"the parts of {base} do not fit together ({error})") from error


def _unpacked(words: NDArray[np.int32], bits: int, axis: int) -> Bytes:
    """The numbers of words, the lowest first, along an axis."""
    per = 32 // bits
    shifts = (np.arange(per, dtype=np.uint32) * np.uint32(bits)).reshape(-1, *([1] * (words.ndim - 1 - axis)))
    spread = np.expand_dims(words.view(np.uint32), axis + 1) >> shifts
    numbers = (spread & np.uint32((1 << bits) - 1)).astype(np.uint8)
    return numbers.reshape(*words.shape[:axis], -1, *words.shape[axis + 1 :])


def _words(store: HubFiles, name: str) -> NDArray[np.int32]:
    return np.ascontiguousarray(store.array(name)).view(np.int32)


def _gptq(store: HubFiles, base: str, method: Method) -> Matrix:
    quants = _unpacked(_words(store, f"{base}.qweight"), method.bits, 0).T  # (N, K)
    scales = store.floats(f"{base}.scales").astype(np.float32).T  # (N, G)
    zeros = _unpacked(_words(store, f"{base}.qzeros"), method.bits, 1).T[: scales.shape[0]]
    if method.zero_is_one_less:
        zeros = (zeros + np.uint8(1)) & np.uint8((1 << method.bits) - 1)
    groups = store.array(f"{base}.g_idx").astype(np.int64).reshape(-1) if f"{base}.g_idx" in store else None
    return _grouped(quants, scales, zeros, groups, method.bits)


def _awq(store: HubFiles, base: str, method: Method) -> Matrix:
    def numbers(name: str) -> Bytes:
        found = _unpacked(_words(store, name), 4, 1)
        return found.reshape(found.shape[0], -1, 8)[:, :, AWQ_ORDER].reshape(found.shape).T

    scales = store.floats(f"{base}.scales").astype(np.float32).T
    return _grouped(numbers(f"{base}.qweight"), scales, numbers(f"{base}.qzeros"), None, 4)


def _packed(store: HubFiles, base: str, method: Method) -> Matrix:
    rows, columns = (int(side) for side in store.array(f"{base}.weight_shape").reshape(-1))
    quants = _unpacked(_words(store, f"{base}.weight_packed"), method.bits, 1)[:, :columns]
    if quants.shape != (rows, columns):
        raise ValueError(f"{quants.shape} numbers, {rows} x {columns} said")
    scales = store.floats(f"{base}.weight_scale").astype(np.float32)
    zeros: int | Bytes = 1 << (method.bits - 1)
    if f"{base}.weight_zero_point" in store:
        zeros = _unpacked(_words(store, f"{base}.weight_zero_point"), method.bits, 0)[:rows]
    groups = store.array(f"{base}.weight_g_idx").astype(np.int64) if f"{base}.weight_g_idx" in store else None
    return _grouped(quants, scales.reshape(rows, -1), zeros, groups, method.bits)


def _integers(store: HubFiles, base: str, method: Method) -> Matrix:
    signed = store.array(f"{base}.weight").view(np.uint8)
    rows = signed.shape[0]
    scales = (
        store.floats(f"{base}.weight_scale")
        .astype(np.float32)
        .reshape(-1, 1 if signed.ndim < 2 else _last(store, base))
    )
    scales = np.broadcast_to(scales, (rows, scales.shape[1]))
    zeros: int | Bytes = 128
    if f"{base}.weight_zero_point" in store:
        points = store.array(f"{base}.weight_zero_point").view(np.uint8) ^ np.uint8(128)
        zeros = np.broadcast_to(points.reshape(-1, scales.shape[1]), scales.shape)
    return _grouped(signed ^ np.uint8(128), scales, zeros, None, 8)  # -128..127 as 0..255


def _last(store: HubFiles, base: str) -> int:
    shape = store.place(f"{base}.weight_scale").shape
    return shape[-1] if len(shape) > 1 else 1


def _grouped(quants: Bytes, scales: Floats, zeros: int | Bytes, groups: NDArray[np.int64] | None, bits: int) -> Matrix:
    """Blocks of (rows, columns) numbers, whose columns share a scale by groups; numbers where groups are scattered."""
    rows, columns = quants.shape
    count = scales.shape[1]
    if scales.shape[0] != rows or columns % count:
        raise ValueError(f"scales {scales.shape} for {rows} x {columns}")
    if not isinstance(zeros, int) and zeros.shape != scales.shape:
        raise ValueError(f"zero points {zeros.shape} for scales {scales.shape}")
    size = columns // count
    if groups is not None and not np.array_equal(groups, np.arange(columns) // size):
        if groups.shape != (columns,) or groups.min() < 0 or groups.max() >= count:
            raise ValueError("columns of groups that are not there")
        zero = np.float32(zeros) if isinstance(zeros, int) else zeros[:, groups].astype(np.float32)
        return (quants.astype(np.float32) - zero) * scales[:, groups]
    block = size if size <= MOST_BLOCK and size & (size - 1) == 0 and size >= 16 else _smaller(size)
    repeat = size // block
    if repeat > 1:  # kernels know small blocks: some neighbours then have equal scales
        scales = scales.repeat(repeat, axis=1)
        zeros = zeros if isinstance(zeros, int) else zeros.repeat(repeat, axis=1)
    container: Bits = 8 if bits == 8 else 4
    cut = np.ascontiguousarray(quants).reshape(rows, -1, block)
    return Blocks(container, block, cut, np.ascontiguousarray(scales), zeros)


def _smaller(size: int) -> int:
    return next((block for block in BLOCK_SIZES if size % block == 0), size)


def _fp8(store: HubFiles, base: str, method: Method) -> Floats:
    values = FP8[store.raw(f"{base}.weight")] if store.place(f"{base}.weight").dtype == "F8_E4M3" else None
    if values is None:
        raise ValueError(f"stored as {store.place(f'{base}.weight').dtype}, not F8_E4M3")
    name = f"{base}.weight_scale_inv" if f"{base}.weight_scale_inv" in store else f"{base}.weight_scale"
    scales = store.floats(name).astype(np.float32)
    if scales.size == 1:
        return values * scales.reshape(())
    scales = scales.reshape(-1, 1) if scales.ndim == 1 else scales
    for axis in (-2, -1):
        side = values.shape[axis]
        size = -(-side // scales.shape[axis])
        size = SQUARE if scales.shape[axis] == -(-side // SQUARE) and scales.shape[axis] > 1 else size
        scales = (
            scales.repeat(size, axis=axis)[..., :side, :] if axis == -2 else scales.repeat(size, axis=axis)[..., :side]
        )
    return values * scales


SQUARE = 128
"""Rows and columns that share a scale in the checkpoints that are published; the last square may be cut."""


def _e4m3() -> Floats:
    """Every value of an 8-bit float with 4 bits of exponent, 3 of fraction and no infinities."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, (code & 7).astype(np.float32) / 8
    size = np.where(exponent == 0, np.ldexp(fraction, -6), np.ldexp(1 + fraction, exponent - 7))
    values = np.where(code & 128, -size, size).astype(np.float32)
    values[[127, 255]] = np.nan
    return values


FP8 = _e4m3()


def _mxfp4(store: HubFiles, base: str, method: Method) -> Blocks:
    packed, exponents = store.raw(f"{base}_blocks"), store.raw(f"{base}_scales")
    if packed.shape != (*exponents.shape, 16):
        raise ValueError(f"blocks {packed.shape}, scales {exponents.shape}")
    codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(*exponents.shape, 32)
    quants = (MXFP4_VALUES[codes] + np.int16(128)).astype(np.uint8)
    scales = np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)  # half, as the values are doubled
    return Blocks(8, 32, quants, scales, 128)


_READERS = {"gptq": _gptq, "awq": _awq, "packed": _packed, "integers": _integers, "fp8": _fp8, "mxfp4": _mxfp4}
