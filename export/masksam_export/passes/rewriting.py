"""What passes share: building nodes that take another's place, with shapes and unique names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.tape import Tape

Dim: TypeAlias = int | str | None
Matrix: TypeAlias = NDArray[np.float64]
Array: TypeAlias = NDArray[np.floating[Any]] | NDArray[np.int64]


class Replacement:
    """New nodes that compute what one node computed; nothing changes before `settle`."""

    def __init__(self, graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
        self._graph, self._node = graph, node
        self._tape = Tape()
        self._constants: list[onnx_ir.Value] = []

    def op(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value | None],
        shape: Sequence[Dim],
        attributes: Mapping[str, Any] | None = None,
    ) -> onnx_ir.Value:
        """A node's only output, float32, of a known shape (a string names a dynamic axis)."""
        value = self._tape.op(op_type, inputs, attributes)
        value.shape, value.type = onnx_ir.Shape(shape), onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        value.name = f"{self._node.name}_{len(self._tape.nodes)}"
        return value

    def constant(self, array: Array) -> onnx_ir.Value:
        """A weight: floats as float32, integers as int64."""
        stored = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        value = onnx_ir.Value(
            name=f"{self._node.name}_weight_{len(self._constants)}",
            shape=onnx_ir.Shape(stored.shape),
            type=onnx_ir.TensorType(onnx_ir.DataType.from_numpy(stored.dtype)),
            const_value=onnx_ir.tensor(stored),
        )
        self._constants.append(value)
        return value

    def reshape(self, value: onnx_ir.Value, shape: Sequence[Dim]) -> onnx_ir.Value:
        """To `shape`; its dynamic axis, at most one, is inferred."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        return self.op("Reshape", [value, self.constant(np.array(sizes))], shape)

    def transpose(self, value: onnx_ir.Value, order: Sequence[int]) -> onnx_ir.Value:
        """Axis i of the result is axis `order[i]`."""
        sizes = sizes_of(value, len(order))
        assert sizes is not None  # made here, or checked by who asks
        return self.op("Transpose", [value], [sizes[axis] for axis in order], {"perm": list(order)})

    def settle(self, result: onnx_ir.Value) -> None:
        """Put the new nodes in the old one's place; `result` takes over its readers and its name."""
        (output,) = self._node.outputs
        for constant in self._constants:
            self._graph.register_initializer(constant)
        for number, node in enumerate(self._tape.nodes):
            node.name = f"{self._node.name}_{node.op_type}_{number}"
        result.name, result.shape = output.name, output.shape
        replace_nodes_and_values(self._graph, self._node, [self._node], self._tape.nodes, [output], [result])


def weight_of(value: onnx_ir.Value | None) -> NDArray[np.float64] | None:
    """A constant's numbers in float64; None if the value is not constant."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy().astype(np.float64)


def sizes_of(value: onnx_ir.Value | None, rank: int) -> list[Dim] | None:
    """The shape of a value of that rank whose axes are all fixed but the first; else None."""
    if value is None or value.shape is None or len(value.shape) != rank:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return dims if all(isinstance(dim, int) for dim in dims[1:]) else None


def ints(node: onnx_ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """An attribute of integers."""
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else list(attribute.as_ints())


def is_plain(node: onnx_ir.Node) -> bool:
    """Whether a 3D convolution, transposed or not, has one group, no dilation and stated paddings."""
    group, automatic = node.attributes.get("group"), node.attributes.get("auto_pad")
    return (
        ints(node, "dilations", [1] * 3) == [1] * 3
        and (group is None or group.as_int() == 1)
        and (automatic is None or automatic.as_string() == "NOTSET")
        and not any(ints(node, "output_padding", []) + ints(node, "output_shape", []))
    )
