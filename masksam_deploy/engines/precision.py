"""A float32 graph to one that carries smaller types itself: strongly typed, the same for every runtime.

TensorRT 10.3 to 11, TensorRT for RTX and ONNX Runtime all take the precision from the graph. Ports stay float32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from masksam_deploy.engines.graph_types import MOVEMENT, GraphIndex

Half: TypeAlias = Literal["fp16", "bf16"]

_ELEMENT: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
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


class _Rewriter:
    """Builds the new node list in order, with casts where the type changes, each once."""

    def __init__(self, model: ModelProto, index: GraphIndex, element: int, lowered: set[str]) -> None:
        self.model = model
        self.index = index
        self.element = element
        self.lowered = lowered
        self.halves = {  # tensors that are now in half precision under their old name
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
            self._add(node)
        for name in sorted(self.outputs & self.halves):
            self.nodes.append(_cast(_stored(name), name, TensorProto.FLOAT))
        rewritten = onnx.helper.make_graph(
            self.nodes, graph.name, graph.input, graph.output, list(self.weights.values())
        )
        return onnx.helper.make_model(
            rewritten, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )

    def _add(self, node: NodeProto) -> None:
        lowered = node.name in self.lowered
        copy = NodeProto()
        copy.CopyFrom(node)
        fixed = _FLOAT32_INPUTS.get(node.op_type, ())
        names = [self._input(name, lowered and place not in fixed) for place, name in enumerate(node.input)]
        del copy.input[:]
        copy.input.extend(names)
        for place, name in enumerate(node.output):
            if name in self.outputs & self.halves:
                copy.output[place] = _stored(name)
        self.nodes.append(copy)

    def _input(self, name: str, lowered: bool) -> str:
        """The name under which a node finds this tensor in the type it computes in."""
        if not name or not self.index.is_float(name):
            if name in self.index.weights:
                self.weights[name] = self.index.weights[name]
            return name
        if name in self.index.weights:
            return self._weight(name, lowered)
        held = name in self.halves
        stored = _stored(name) if name in self.outputs & self.halves else name
        if held == lowered:
            return stored
        return self._casted(stored, self.element if lowered else TensorProto.FLOAT)

    def _weight(self, name: str, lowered: bool) -> str:
        if not lowered:
            self.weights[name] = self.index.weights[name]
            return name
        renamed = f"{name}__half"
        if renamed not in self.weights:
            self.weights[renamed] = _half_weight(self.index.weights[name], renamed, self.element)
        return renamed

    def _casted(self, name: str, element: int) -> str:
        if (name, element) not in self.casts:
            made = f"{name}__{'float' if element == TensorProto.FLOAT else 'half'}"
            self.nodes.append(_cast(name, made, element))
            self.casts[name, element] = made
        return self.casts[name, element]


def _stored(name: str) -> str:
    """What a graph's output is called inside while it is in half precision."""
    return f"{name}__stored"


def _cast(name: str, made: str, element: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [name], [made], name=f"cast_{made}", to=element)


def _half_weight(tensor: TensorProto, name: str, element: int) -> TensorProto:
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    return onnx.numpy_helper.from_array(values.astype(onnx.helper.tensor_dtype_to_np_dtype(element)), name)
