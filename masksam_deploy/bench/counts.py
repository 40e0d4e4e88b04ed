"""What a graph has to do for one window, counted in its ONNX file. Needs `onnx`, so it stands alone.

Operations: 2 a multiply-add in matrix products and convolutions; everything else is left out (a few percent of the
operations, though not of the time). Bytes: every operator reads its inputs and weights and writes its outputs once, at
four bytes an element, as if nothing were fused and nothing stayed in a cache. Views (reshapes) move nothing, slices
only what they give.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx
import onnx.inliner
from onnx import NodeProto

from masksam_deploy.base.errors import BenchError
from masksam_deploy.base.text import shown
from masksam_deploy.bench.results import Work
from masksam_deploy.engines.graph_types import Shape, tensor_shapes

BYTES_PER_ELEMENT = 4
PARTIAL = frozenset(["Slice", "Gather", "Split"])
VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Constant"])


def count_work(path: Path) -> Work:
    """Count a graph with a batch of one.

    Raises:
        BenchError: it is no ONNX graph, a shape cannot be inferred, or it holds nothing that is counted.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise BenchError(
            f"{shown(path)}: found no ONNX graph ({type(error).__name__}), expected one; export the bundle again"
        ) from error
    shapes = tensor_shapes(model)
    try:
        flops = sum(node_flops(node, shapes) for node in model.graph.node)
        moved = sum(node_bytes(node, shapes) for node in model.graph.node)
    except KeyError as error:
        raise BenchError(
            f"{shown(path)}: found tensor {error.args[0]!r} without a shape, expected every shape to follow from the "
            "inputs; export the bundle again"
        ) from error
    if not flops:
        raise BenchError(
            f"{shown(path)}: found no matrix product or convolution, expected some; export the bundle again"
        )
    return Work(flops=flops, bytes=moved)


def node_flops(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Operations of one node; 0 for what is not a matrix product or convolution.

    Raises:
        KeyError: a shape is missing.
    """
    if node.op_type == "MatMul":
        return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]
    if node.op_type == "Conv":  # weight [M, C / group, *kernel]: each output sums over all but M
        return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":  # weight [C, M / group, *kernel]: each input spreads over all but C
        return 2 * prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])
    return 0


def node_bytes(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Bytes that one node reads and writes.

    Raises:
        KeyError: a shape is missing.
    """
    if node.op_type in VIEWS:
        return 0
    if node.op_type in PARTIAL:  # what is left out is not read
        return 2 * BYTES_PER_ELEMENT * sum(prod(shapes[name]) for name in node.output if name)
    # A tensor given twice is read once.
    names = [name for name in dict.fromkeys((*node.input, *node.output)) if name]
    return BYTES_PER_ELEMENT * sum(prod(shapes[name]) for name in names)
