"""The middle of each depth-convolution adapter as one ONNX node, and what becomes of it.

Tracing leaves a node `masksam::DepthConvAdapter3d` per adapter. Given a body (an ONNX function in standard operators)
it runs anywhere; inlined, nothing of ours is left in the graph; without a body, only a plugin can run it.

The depthwise 3D convolution inside has three formulations, equal up to the order of additions. Which one is fastest
depends on the backend: `benchmarks/adapter_formulations.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias, get_args

import onnx
import onnx_ir
from onnx import parser
from onnx_ir.passes.common import InlinePass

from masksam_export.families.base import Rewrite

DOMAIN = "masksam"
OP_TYPE = "DepthConvAdapter3d"
VERSION = 1

Formulation: TypeAlias = Literal["planes", "stacked", "volume"]
Adapters: TypeAlias = Literal["planes", "stacked", "volume", "node"]
FORMULATIONS: tuple[Formulation, ...] = get_args(Formulation)
DEFAULT_FORMULATION: Formulation = "planes"
"""The fastest on ONNX Runtime's CPU; see `benchmarks/results/adapter_formulations.json`."""

# Shapes are built from attributes, so that nothing in the body asks a tensor for its shape.
_HEAD = """
<opset_import: ["" : 20], domain: "masksam">
DepthConvAdapter3d
<frames, inner, height, width, channels, epsilon, plugin_namespace, plugin_version>
(hidden, bias, taps, taps_bias, norm_weight, norm_bias) => (out)
{
    any = Constant <value_ints = [-1]> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    three = Constant <value_ints = [3]> ()
    frame_count = Constant <value_int: int = @frames> ()
    inner_count = Constant <value_int: int = @inner> ()
    row_count = Constant <value_int: int = @height> ()
    column_count = Constant <value_int: int = @width> ()
    channel_count = Constant <value_int: int = @channels> ()
    t = Unsqueeze (frame_count, zero)
    i = Unsqueeze (inner_count, zero)
    h = Unsqueeze (row_count, zero)
    w = Unsqueeze (column_count, zero)
    c = Unsqueeze (channel_count, zero)
    shifted = Add (hidden, bias)
    active = Gelu (shifted)
    by_channel = Transpose <perm = [1, 0]> (taps)
"""
_TAIL = """
    normed = LayerNormalization <axis = -1, epsilon: float = @epsilon> (rows, norm_weight, norm_bias)
    mixed = Gelu (normed)
    out = Add (active, mixed)
}
"""
_BODIES: dict[Formulation, str] = {
    # One depthwise 3D convolution.
    "volume": """
    by_group = Concat <axis = 0> (any, t, i, h, w, c)
    grouped = Reshape (active, by_group)
    channel_first = Transpose <perm = [0, 2, 5, 1, 3, 4]> (grouped)
    volume_shape = Concat <axis = 0> (any, c, t, h, w)
    volumes = Reshape (channel_first, volume_shape)
    kernel_shape = Concat <axis = 0> (c, one, three, three, three)
    kernel = Reshape (by_channel, kernel_shape)
    sums = Conv <group: int = @channels, kernel_shape = [3, 3, 3], pads = [1, 1, 1, 1, 1, 1]>
        (volumes, kernel, taps_bias)
    sums_shape = Concat <axis = 0> (any, i, c, t, h, w)
    by_query = Reshape (sums, sums_shape)
    channel_last = Transpose <perm = [0, 3, 1, 4, 5, 2]> (by_query)
    row_shape = Concat <axis = 0> (any, h, w, c)
    rows = Reshape (channel_last, row_shape)
""",
    # Each channel stacked with its neighbours in depth; one 2D convolution with three inputs a group.
    "stacked": """
    by_group = Concat <axis = 0> (any, t, i, h, w, c)
    grouped = Reshape (active, by_group)
    here = Transpose <perm = [0, 1, 2, 5, 3, 4]> (grouped)
    later = Constant <value_ints = [0, 1, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0]> ()
    earlier = Constant <value_ints = [0, -1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]> ()
    before = Pad (here, later)
    after = Pad (here, earlier)
    four = Constant <value_ints = [4]> ()
    before_one = Unsqueeze (before, four)
    here_one = Unsqueeze (here, four)
    after_one = Unsqueeze (after, four)
    neighbours = Concat <axis = 4> (before_one, here_one, after_one)
    c3 = Mul (c, three)
    plane_shape = Concat <axis = 0> (any, c3, h, w)
    planes = Reshape (neighbours, plane_shape)
    kernel_shape = Concat <axis = 0> (c, three, three, three)
    kernel = Reshape (by_channel, kernel_shape)
    sums = Conv <group: int = @channels, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (planes, kernel, taps_bias)
    rows = Transpose <perm = [0, 2, 3, 1]> (sums)
""",
    # Three depthwise 2D convolutions of every frame; two of the results move on by a frame before they are added.
    "planes": """
    planes = Transpose <perm = [0, 3, 1, 2]> (active)
    kernel_shape = Concat <axis = 0> (c, three, three, three)
    kernel = Reshape (by_channel, kernel_shape)
    two = Constant <value_ints = [2]> ()
    first = Slice (kernel, zero, one, one)
    middle = Slice (kernel, one, two, one)
    last = Slice (kernel, two, three, one)
    of_before = Conv <group: int = @channels, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (planes, first)
    of_here = Conv <group: int = @channels, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (planes, middle, taps_bias)
    of_after = Conv <group: int = @channels, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (planes, last)
    by_group = Concat <axis = 0> (any, t, i, c, h, w)
    grouped_before = Reshape (of_before, by_group)
    grouped_here = Reshape (of_here, by_group)
    grouped_after = Reshape (of_after, by_group)
    later = Constant <value_ints = [0, 1, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0]> ()
    earlier = Constant <value_ints = [0, -1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]> ()
    from_before = Pad (grouped_before, later)
    from_after = Pad (grouped_after, earlier)
    two_sums = Add (grouped_here, from_before)
    sums = Add (two_sums, from_after)
    plane_shape = Concat <axis = 0> (any, c, h, w)
    channel_first = Reshape (sums, plane_shape)
    rows = Transpose <perm = [0, 2, 3, 1]> (channel_first)
""",
}


def adapter_function(formulation: Formulation = DEFAULT_FORMULATION) -> onnx.FunctionProto:
    """The node's meaning in operators of opset 20."""
    return parser.parse_function(_HEAD + _BODIES[formulation] + _TAIL)


def settle_adapters(model: onnx_ir.Model, adapters: Adapters) -> None:
    """Adapter nodes as asked for: in standard operators with one of the formulations, or as nodes with a body."""
    if adapters == "node":
        give_bodies(model)
    elif adapter_nodes(model):
        give_bodies(model, adapters)
        inline_bodies(model)


def adapter_rewrites(adapters: Adapters = DEFAULT_FORMULATION) -> tuple[Rewrite, ...]:
    """`settle_adapters` as what the exporter applies to every graph."""
    return (partial(settle_adapters, adapters=adapters),)


def adapter_nodes(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    """All adapter nodes of the main graph."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]


def give_bodies(model: onnx_ir.Model, formulation: Formulation = DEFAULT_FORMULATION) -> None:
    """Adds or replaces the function that adapter nodes stand for; a graph without such nodes stays as it is."""
    if not adapter_nodes(model):
        return
    function = onnx_ir.serde.deserialize_function(adapter_function(formulation))
    model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION


def inline_bodies(model: onnx_ir.Model) -> None:
    """Replaces adapter nodes by standard operators; they need bodies."""
    InlinePass()(model)
    model.opset_imports.pop(DOMAIN, None)


def drop_bodies(model: onnx_ir.Model) -> None:
    """Leaves adapter nodes to a plugin, for parsers in which a body would win over it."""
    for identifier in [identifier for identifier in model.functions if identifier[0] == DOMAIN]:
        del model.functions[identifier]
