"""Puts an ONNX graph together: nodes, and the numbers that they compute with. Knows operators, no models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx import helper as onnx_helper

from node.engine.ort.linear import SUM_BLOCK, Linear, packed_zeros
from node.weights.blocks import Blocks, Floats, quantised

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""
OPSET, CONTRIB_OPSET, IR_VERSION = 18, 1, 9
ACCURACY_LEVEL = 4
"""Of `MatMulNBits`: rows are rounded to 8 bits for each block. Other levels are ten times slower."""
INLINE_BYTES = 1024
"""Numbers up to this size lie in the graph itself; onnxruntime folds shapes that it knows."""

Numbers = NDArray[np.generic]


class Graph:
    """A graph that grows node by node. Names of values are unique by a prefix that the caller sets for each layer."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Numbers] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.prefix = ""
        self.forms: set[tuple[int, int]] = set()
        """Bits and block of its matrices; (32, 0): float32."""
        self.serial = 0
        """Counts names."""
        self._sums: dict[tuple[str, int], str] = {}

    @property
    def nbytes(self) -> int:
        """Of all constants, as they are given to the library."""
        return sum(numbers.nbytes for numbers in self.constants.values())

    def input(self, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> str:
        """A value that each run gives."""
        self.inputs.append(onnx_helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> None:
        """A value that each run is asked for."""
        self.outputs.append(onnx_helper.make_tensor_value_info(name, kind, list(shape)))

    def constant(self, name: str, numbers: Numbers) -> str:
        """Numbers of the graph."""
        full = self.prefix + name
        self.constants.setdefault(full, np.ascontiguousarray(numbers))
        return full

    def shape(self, *sizes: int) -> str:
        """Sizes for `Reshape`, one constant for equal ones; 0 keeps the input's, -1 takes the rest."""
        name = "shape_" + "_".join(str(size) for size in sizes).replace("-", "m")
        self.constants.setdefault(name, np.array(sizes, np.int64))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; its first output. Without names for the outputs there is one, with a name of its own."""
        self.serial += 1
        names = list(outputs) or [f"{self.prefix}{operator}_{self.serial}"]
        node = onnx_helper.make_node(
            operator, list(inputs), names, domain=domain, name=f"{operator}_{self.serial}", **attributes
        )
        self.nodes.append(node)
        return names[0]

    def contrib(self, operator: str, inputs: Sequence[str], *, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node of onnxruntime's own operators."""
        return self.node(operator, inputs, outputs=outputs, domain=CONTRIB, **attributes)

    def split(self, value: str, sizes: Sequence[int]) -> list[str]:
        """Parts of the last axis."""
        self.serial += 1
        names = [f"{self.prefix}part_{self.serial}_{index}" for index in range(len(sizes))]
        self.node("Split", [value, self.shape(*sizes)], outputs=names, axis=-1)
        return names

    # --- what models are made of ------------------------------------------------------------------------------------

    def norm(self, value: str, name: str, factors: Floats, epsilon: float) -> str:
        """Root mean square norm over the last axis."""
        inputs = [value, self.constant(name, factors)]
        return self.node("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=epsilon, stash_type=1)

    def skip_norm(self, value: str, added: str, name: str, factors: Floats, epsilon: float) -> tuple[str, str]:
        """The norm of the sum of two, and the sum."""
        self.serial += 1
        normed, total = (f"{self.prefix}{what}_{self.serial}" for what in ("normed", "sum"))
        inputs = [value, added, self.constant(name, factors)]
        self.contrib("SkipSimplifiedLayerNormalization", inputs, outputs=[normed, "", "", total], epsilon=epsilon)
        return normed, total

    def linear(self, value: str, linear: Linear, name: str) -> str:
        """A product with a matrix."""
        bias = "" if linear.bias is None else self.constant(f"{name}.bias", linear.bias)
        if not isinstance(linear.matrix, Blocks):
            self.forms.add((32, 0))
            weight = self.constant(f"{name}.weight", linear.matrix)
            product = self.contrib("FusedMatMul", [value, weight], transA=0, transB=1, alpha=1.0)
            return self.node("Add", [product, bias]) if bias else product
        product = self._blocks(value, linear.matrix, name, linear.matrix.shape[1])
        if linear.minimums is not None:
            product = self.node("Add", [product, self._minimums(value, linear, name)])
        return self.node("Add", [product, bias]) if bias else product

    def _blocks(self, value: str, blocks: Blocks, name: str, columns: int) -> str:
        self.forms.add((blocks.bits, blocks.block))
        packed = blocks.packed()
        inputs = [value, self.constant(f"{name}.quants", packed), self.constant(f"{name}.scales", blocks.scales)]
        if (zeros := packed_zeros(blocks)) is not None:
            inputs.append(self.constant(f"{name}.zeros", zeros))
        return self.contrib(
            "MatMulNBits",
            inputs,
            K=columns,
            N=packed.shape[0],
            bits=blocks.bits,
            block_size=blocks.block,
            accuracy_level=ACCURACY_LEVEL,
        )

    def _minimums(self, value: str, linear: Linear, name: str) -> str:
        """What the minimums add to a product: the sums of the input's blocks, times a small matrix in 8 bits."""
        assert linear.minimums is not None
        assert isinstance(linear.matrix, Blocks)
        block = linear.matrix.block
        sums = self._block_sums(value, linear.columns, block)
        given = linear.columns // block
        padded = np.pad(-linear.minimums, ((0, 0), (0, -given % SUM_BLOCK)))
        return self._blocks(sums, quantised(padded, 8, SUM_BLOCK), f"{name}.minimums", given)

    def _block_sums(self, value: str, columns: int, block: int) -> str:
        """(…, columns / block), once for all products over the same input."""
        if (known := self._sums.get((value, block))) is None:
            apart = self.node("Reshape", [value, self.shape(0, 0, columns // block, block)])
            axes = self.shape(-1)
            known = self._sums[value, block] = self.node("ReduceSum", [apart, axes], keepdims=0)
        return known

    # --- done -------------------------------------------------------------------------------------------------------

    def model(self) -> tuple[ModelProto, dict[str, Numbers]]:
        """The graph, and the numbers that are too large to lie in it, by name."""
        large = {name: numbers for name, numbers in self.constants.items() if numbers.nbytes > INLINE_BYTES}
        tensors = [
            _outside(name, numbers) if name in large else _inside(name, numbers)
            for name, numbers in self.constants.items()
        ]
        graph = onnx_helper.make_graph(self.nodes, "layers", self.inputs, self.outputs, tensors)
        opsets = [onnx_helper.make_opsetid("", OPSET), onnx_helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
        model = onnx_helper.make_model(graph, opset_imports=opsets)
        model.ir_version = IR_VERSION
        return model, large


def _inside(name: str, numbers: Numbers) -> TensorProto:
    kind = onnx_helper.np_dtype_to_tensor_dtype(numbers.dtype)
    return onnx_helper.make_tensor(name, kind, numbers.shape, numbers.tobytes(), raw=True)


def _outside(name: str, numbers: Numbers) -> TensorProto:
    """A place that is filled from memory when the session is made; the file that it names does not exist."""
    tensor = TensorProto()
    tensor.name = name
    tensor.data_type = onnx_helper.np_dtype_to_tensor_dtype(numbers.dtype)
    tensor.dims.extend(numbers.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "memory"), ("offset", "0"), ("length", str(numbers.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor
