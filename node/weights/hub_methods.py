"""Which ways of quantising a checkpoint of transformers' kind can be read. Looks at config.json alone; no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from node.errors import DamagedModel, UnsupportedModel

MethodName = Literal["gptq", "awq", "fp8", "packed", "integers", "mxfp4"]
"""`packed` and `integers` are compressed-tensors' 4- and 8-bit integers, several to a word or one to a byte."""

READABLE = (
    "GPTQ (2, 4, 8 bits), AWQ (4 bits, gemm), FP8, MXFP4, compressed-tensors (pack-quantized, int-quantized,"
    " float-quantized)"
)
KEYS = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class Method:
    """How a checkpoint's matrices are stored."""

    name: MethodName
    bits: int
    zero_is_one_less: bool = False
    """Whether zero points are stored as one less than they are, as in GPTQ's first format."""
    symmetric: bool = True

    @property
    def label(self) -> str:
        """For people: `gptq-4`."""
        return f"{self.name}-{self.bits}" if self.name not in ("fp8", "mxfp4") else self.name


def method_of(config: Mapping[str, object], where: str) -> Method | None:
    """How the weights are stored; None where they are floating-point numbers.

    Raises:
        UnsupportedModel: in a way that cannot be read; names it.
        DamagedModel: what config.json says about it makes no sense.
    """
    found = next((config[key] for key in KEYS if config.get(key)), None)
    if found is None:
        return None
    if not isinstance(found, dict):
        raise DamagedModel(where, "its quantization_config is no object")
    named = found.get("quant_method", "")
    if named in ("gptq", "auto-round"):
        return _gptq(found, named, where)
    if named == "awq":
        if found.get("version", "gemm") != "gemm" or _bits(found, where) != 4:
            raise _unreadable(where, f"awq, version {str(found.get('version'))[:20]}")
        return Method("awq", 4, symmetric=False)
    if named == "fp8":
        return Method("fp8", 8)
    if named == "mxfp4":
        return Method("mxfp4", 4)
    if named == "compressed-tensors" or "config_groups" in found:
        return _compressed_tensors(found, where)
    raise _unreadable(where, str(named)[:40] or "of an unknown method")


def _unreadable(where: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(where, f"a checkpoint with quantised weights ({what})", f"{READABLE}, or a GGUF file of it")


def _bits(found: Mapping[str, object], where: str, key: str = "bits") -> int:
    bits = found.get(key)
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 16:
        raise DamagedModel(where, f'the key "{key}" of its quantisation is {str(bits)[:20]!r}')
    return bits


def _gptq(found: Mapping[str, object], named: str, where: str) -> Method:
    bits = _bits(found, where)
    packing = str(found.get("packing_format", "auto_round:auto_gptq"))
    if bits not in (2, 4, 8) or (named == "auto-round" and "gptq" not in packing):
        raise _unreadable(where, f"{named} with {bits} bits, {packing[:30]}")
    return Method("gptq", bits, found.get("checkpoint_format", "gptq") != "gptq_v2", found.get("sym") is True)


def _compressed_tensors(found: Mapping[str, object], where: str) -> Method:
    form = str(found.get("format"))[:40]
    if sparsity := found.get("sparsity_config"):
        kind = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
        if kind not in ("dense", None):
            raise _unreadable(where, f"compressed-tensors, sparse: {str(kind)[:30]}")
    groups = found.get("config_groups")
    kinds = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    weights = [kind for kind in kinds if isinstance(kind, dict)]
    alike = {(kind.get("num_bits"), kind.get("type"), kind.get("symmetric")) for kind in weights}
    if len(alike) != 1:
        raise _unreadable(where, f"compressed-tensors, {len(alike)} kinds of weights")
    bits, kind = _bits(weights[0], where, "num_bits"), weights[0].get("type", "int")
    symmetric = weights[0].get("symmetric") is not False
    if form == "pack-quantized" and kind == "int" and bits in (4, 8):
        return Method("packed", bits, symmetric=symmetric)
    if form in ("int-quantized", "naive-quantized") and kind == "int" and bits == 8:
        return Method("integers", 8, symmetric=symmetric)
    if form in ("float-quantized", "naive-quantized") and kind == "float" and bits == 8:
        return Method("fp8", 8)
    raise _unreadable(where, f"compressed-tensors, {form} with {bits} bits")
