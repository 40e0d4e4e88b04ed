"""A float32 graph to one that carries smaller types itself: strongly typed, the same for every runtime.

TensorRT 10.3 to 11, TensorRT for RTX and ONNX Runtime all take the precision from the graph. Ports stay float32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from masksam_deploy.engines.graph_types import MOVEMENT, GraphIndex

Half: TypeAlias = Literal["fp16", "bf16"]

_ELEMENT: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_BF16_OPSET = 22
_SCALED = frozenset(["QuantizeLinear", "DequantizeLinear"])
_SMALLEST_HALF = np.float32(2.0**-24)
_FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs that ONNX fixes to float32."""


def lower_precision(model: ModelProto, half: Half, protected: Collection[str]) -> ModelProto:
    """Weights and activations in `half`, but for the protected nodes.

    Args:
        model: in float32, nodes named; not modified.
        half: fp16 or bf16.
        protected: names of nodes that stay in float32.

    Returns:
        The typed graph, with the same ports in float32.
    """
    index = GraphIndex(model)
    lowered = _lowered_nodes(index, protected)
    return _Rewriter(model, index, _ELEMENT[half], lowered).result()


def _lowered_nodes(index: GraphIndex, protected: Collection[str]) -> set[str]:
    """Names of the nodes that compute in half precision."""
    arithmetic = {
        node.name
        for node in index.graph.node
        if node.name not in protected
        and node.op_type not in MOVEMENT
        and node.op_type != "Cast"
        and any(index.is_float(name) for name in node.output)
    }
    lowered = set(arithmetic)
    outputs = {value.name for value in index.graph.output}
    movers = [node for node in index.graph.node if node.op_type in MOVEMENT and index.is_float(node.output[0])]
    for node in movers:  # in the graph's order: what moves half precision stays in it
        sources = [index.producer.get(name) for name in index.computed(node)]
        if node.name not in protected and sources and all(source and source.name in lowered for source in sources):
            lowered.add(node.name)
    for node in reversed(movers):  # against it: what only half precision reads is moved in it
        readers = [reader for name in node.output for reader in index.consumers[name]]
        if (
            node.name not in protected
            and readers
            and not outputs.intersection(node.output)
            and all(reader.name in lowered for reader in readers)
        ):
            lowered.add(node.name)
    return lowered


def simulate_precision(model: ModelProto, half: Half, protected: Collection[str]) -> ModelProto:
    """The graph of `lower_precision` in float32, with every value rounded as it would be stored.

    ONNX Runtime on a CPU computes a half-precision graph in float32 from one operator to the next: nothing overflows,
    and bfloat16 does not run at all. Here every tensor that the typed graph holds in `half` really passes through it,
    so that what a GPU would lose shows. Sums are float32 on the way, as in tensor cores.
    """
    index = GraphIndex(model)
    return _Simulator(model, index, _ELEMENT[half], _lowered_nodes(index, protected)).result()


class _Rewriter:
    """Builds the new node list in order, with casts where the type changes, each once."""

    def __init__(self, model: ModelProto, index: GraphIndex, element: int, lowered: set[str]) -> None:
        self.model = model
        self.index = index
        self.element = element
        self.lowered = lowered
        self.halves = {  # tensors that are now in half precision
            name for node in model.graph.node if node.name in lowered for name in node.output if index.is_float(name)
        }
        self.outputs = {value.name for value in model.graph.output}
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.casts: dict[tuple[str, int], str] = {}

    def result(self) -> ModelProto:
        """The new model."""
        graph = self.model.graph
        for node in graph.node:
            self.add(node)
        rewritten = onnx.helper.make_graph(
            self.nodes, graph.name, graph.input, graph.output, list(self.weights.values())
        )
        opsets = [onnx.helper.make_opsetid(opset.domain, self._version(opset)) for opset in self.model.opset_import]
        return onnx.helper.make_model(rewritten, opset_imports=opsets, ir_version=self.model.ir_version)

    def add(self, node: NodeProto) -> None:
        """One node, its inputs in the type it computes in, its outputs under the names that others know."""
        lowered = node.name in self.lowered
        fixed = _FLOAT32_INPUTS.get(node.op_type, ())
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(self._input(name, lowered and place not in fixed) for place, name in enumerate(node.input))
        after = []
        for place, name in enumerate(node.output):
            if name in self.halves:
                copy.output[place], made = self.stored(name)
                after += made
        self.nodes += [copy, *after]

    def stored(self, name: str) -> tuple[str, list[NodeProto]]:
        """What a half-precision result is called where it is made, and what follows that."""
        if name not in self.outputs:
            return name, []
        stored = f"{name}__stored"
        return stored, [_cast(stored, name, TensorProto.FLOAT)]

    def converted(self, name: str, lowered: bool) -> str:
        """A tensor in another type than it is held in."""
        source = f"{name}__stored" if name in self.halves & self.outputs else name
        if (name in self.halves) == lowered:
            return source
        return self.cast_once(source, self.element if lowered else TensorProto.FLOAT)

    def weight(self, name: str) -> TensorProto:
        """A weight as a lowered node reads it."""
        values = self.half_values(name)
        return onnx.numpy_helper.from_array(values, f"{name}__half")

    def half_values(self, name: str) -> NDArray[Any]:
        """A weight's values in half precision; a scale of int8 must not become 0."""
        values = onnx.numpy_helper.to_array(self.index.weights[name]).astype(np.float32)
        if any(reader.op_type in _SCALED and reader.input[1] == name for reader in self.index.consumers[name]):
            values = np.maximum(values, _SMALLEST_HALF)
        return values.astype(onnx.helper.tensor_dtype_to_np_dtype(self.element))

    def cast_once(self, name: str, element: int) -> str:
        """A tensor in another type, cast by one node for all who read it."""
        if (name, element) not in self.casts:
            made = f"{name}__{'float' if element == TensorProto.FLOAT else 'half'}"
            self.nodes.append(_cast(name, made, element))
            self.casts[name, element] = made
        return self.casts[name, element]

    def _version(self, opset: onnx.OperatorSetIdProto) -> int:
        """Convolutions and instance norms take bfloat16 from opset 22 on; what the graphs hold means the same there."""
        newer = self.element == TensorProto.BFLOAT16 and opset.domain in ("", "ai.onnx")
        return max(opset.version, _BF16_OPSET) if newer else opset.version

    def _input(self, name: str, lowered: bool) -> str:
        if name in self.index.weights:
            tensor = self.index.weights[name]
            if lowered and self.index.is_float(name):
                tensor = self.weight(name)
            self.weights.setdefault(tensor.name, tensor)
            return str(tensor.name)
        return self.converted(name, lowered) if self.index.is_float(name) else name


class _Simulator(_Rewriter):
    """The same, but all in float32 and rounded through `element`."""

    def stored(self, name: str) -> tuple[str, list[NodeProto]]:
        exact, narrow = f"{name}__exact", f"{name}__narrow"
        return exact, [_cast(exact, narrow, self.element), _cast(narrow, name, TensorProto.FLOAT)]

    def converted(self, name: str, lowered: bool) -> str:
        if name in self.halves or not lowered:
            return name
        return self.cast_once(self.cast_once(name, self.element), TensorProto.FLOAT)

    def weight(self, name: str) -> TensorProto:
        values = self.half_values(name).astype(np.float32)
        return onnx.numpy_helper.from_array(values, f"{name}__half")


def _cast(name: str, made: str, element: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [name], [made], name=f"cast_{made}", to=element)
