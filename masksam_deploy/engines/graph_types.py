"""What every graph rewrite here needs to know of an ONNX graph: types, producers, consumers, unique node names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from masksam_deploy.base.errors import EngineError
from masksam_deploy.bundle.directory import reporting_writes

EMBED_LIMIT = 2**30
"""Bytes of weights above which they go to a file of their own: protobuf ends at 2 GiB."""

MOVEMENT = frozenset(
    ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Pad", "Gather", "Flatten", "Identity"]
)
"""Operators that move elements and do no arithmetic."""


Shape: TypeAlias = tuple[int, ...]


class GraphIndex:
    """Producers, consumers and element types of a graph's tensors, by name.

    Args:
        model: with unique node names; shapes and types are inferred here.
    """

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in filter(None, node.input):
                self.consumers[name].append(node)
        self.types, self.shapes = _inferred(model)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32."""
        return self.types.get(name) == TensorProto.FLOAT

    def computed(self, node: NodeProto) -> list[str]:
        """The float32 inputs of a node that are not weights."""
        return [name for name in node.input if name and name not in self.weights and self.is_float(name)]

    def weighted(self, node: NodeProto) -> bool:
        """Whether the node multiplies with a learned weight: a Linear or a convolution.

        `rows @ x` and `rows @ x @ columns` with constants around resample planes or combine frames: nothing is learned.
        """
        if node.op_type == "MatMul":
            before = self.producer.get(node.input[0])
            is_second = before is not None and before.op_type == "MatMul" and before.input[0] in self.weights
            return node.input[1] in self.weights and not is_second
        return node.op_type in ("Gemm", "Conv", "ConvTranspose") and any(
            name in self.weights for name in node.input[:2]
        )

    def upstream(self, nodes: Iterable[NodeProto], *, until: frozenset[str] = frozenset()) -> dict[str, NodeProto]:
        """Nodes that the given ones depend on, by name, the given ones too; walking stops at nodes named in `until`."""
        return self._reach(nodes, until, lambda node: [self.producer.get(name) for name in node.input])

    def downstream(self, nodes: Iterable[NodeProto]) -> dict[str, NodeProto]:
        """Nodes that depend on the given ones, by name, the given ones too."""
        return self._reach(nodes, frozenset(), lambda node: [c for name in node.output for c in self.consumers[name]])

    @staticmethod
    def _reach(
        nodes: Iterable[NodeProto], until: frozenset[str], neighbours: Callable[[NodeProto], Iterable[NodeProto | None]]
    ) -> dict[str, NodeProto]:
        found: dict[str, NodeProto] = {}
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node.name in found:
                continue
            found[node.name] = node
            if node.name not in until:
                waiting.extend(neighbour for neighbour in neighbours(node) if neighbour is not None)
        return found


def load_model(path: Path) -> ModelProto:
    """A graph with its weights, its functions put in place and every node named.

    Raises:
        EngineError: the file is no ONNX graph.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise EngineError(f"{path.name}: found no ONNX graph ({type(error).__name__}), expected one") from error
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _lift_constants(model.graph)
    name_nodes(model.graph)
    return model


def copied(model: ModelProto) -> ModelProto:
    """A copy made part by part: protobuf copies a message through its bytes, and these end at 2 GiB."""
    graph = model.graph
    copy = onnx.helper.make_graph(graph.node, graph.name, graph.input, graph.output, graph.initializer)
    return onnx.helper.make_model(copy, opset_imports=model.opset_import, ir_version=model.ir_version)


def _lift_constants(graph: GraphProto) -> None:
    """Constant nodes to weights, so that they are converted as weights are."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        (kind, value), *_ = values.items()
        if kind == "value":
            tensor = TensorProto()
            tensor.CopyFrom(value)
        else:
            dtype = np.float32 if kind.startswith("value_float") else np.int64
            tensor = onnx.numpy_helper.from_array(np.asarray(value, dtype))
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def save_model(model: ModelProto, path: Path) -> None:
    """Writes a graph; large weights go to `NAME.data` beside it.

    Raises:
        OutputError: the disk refuses.
    """
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    large = size > EMBED_LIMIT
    with reporting_writes(path):
        onnx.save(
            model,
            str(path),
            save_as_external_data=large,
            location=f"{path.name}.data" if large else None,
            size_threshold=1024,
        )
    if large:  # saving took the weights out of the caller's model
        onnx.load_external_data_for_model(model, str(path.parent))


def name_nodes(graph: GraphProto) -> None:
    """Gives every node a name of its own, in order, so that lists of names mean the same in every run."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{number}"
        while name in taken:
            name = f"{name}_{number}"
        node.name = name
        taken.add(name)


def _inferred(model: ModelProto) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Element type and shape (0 for what is dynamic) of every tensor, inferred without the weights' bytes."""
    skeleton = ModelProto()
    skeleton.CopyFrom(without_large_weights(model))
    inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    weights = model.graph.initializer
    return types | {tensor.name: tensor.data_type for tensor in weights}, shapes


def tensor_shapes(model: ModelProto) -> dict[str, Shape]:
    """The shape of every tensor whose shape follows from the inputs', their batch set to one; unnamed inputs are ()."""
    sized = ModelProto()
    sized.CopyFrom(without_large_weights(model))
    for value in sized.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")  # they name the batch too, and would contradict
    del sized.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(sized, strict_mode=False, data_prop=True).graph
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes | {"": ()}


def without_large_weights(model: ModelProto) -> ModelProto:
    """The same graph whose large weights are inputs: type inference copies the whole model, up to 2 GiB."""
    graph = model.graph
    small = [tensor for tensor in graph.initializer if len(tensor.raw_data) <= 4096]
    large = [tensor for tensor in graph.initializer if len(tensor.raw_data) > 4096]
    inputs = [onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    stripped = onnx.helper.make_graph(graph.node, graph.name, [*graph.input, *inputs], graph.output, small)
    return onnx.helper.make_model(stripped, opset_imports=model.opset_import, ir_version=model.ir_version)
