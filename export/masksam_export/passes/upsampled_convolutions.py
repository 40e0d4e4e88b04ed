"""Convolutions of what a transposed convolution has just doubled, on the small map instead of the doubled one.

Both are linear and nothing lies between them. In a map doubled in rows and columns, three neighbours come from two
cells of the small one, so each of the four kinds of output pixel (even or odd row, even or odd column) is a
convolution of the small map with a kernel of 2 x 2 where the large one has 3 x 3: 4 instead of 9 products. All four
are one convolution with four times the outputs, whose results are then interleaved. The transposed convolution's bias
is the weight of a channel of ones, since beyond the edge there is no bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir

from masksam_export.passes.rewriting import Matrix, Replacement, ints, is_plain, sizes_of, weight_of

LEAST_GAIN = 1.3
"""Fewer multiplications by this factor, or the interleaving costs what they save."""


@dataclass(frozen=True)
class _Upsampling:
    """A transposed convolution and the channels of the convolution that read it."""

    node: onnx_ir.Node
    channels: slice


def convolve_before_upsampling(model: onnx_ir.Model) -> int:
    """Rewrite every convolution of a doubled map for which that pays; how many there were.

    The doubled map may be one of several that are concatenated: the convolution is then split. Transposed convolutions
    that nobody reads any more are left in the graph; remove unused nodes afterwards.
    """
    found = [(node, up) for node in model.graph if (up := _worth_it(node)) is not None]
    for node, up in found:
        _rewrite(model.graph, node, up)
    return len(found)


def _worth_it(node: onnx_ir.Node) -> _Upsampling | None:
    if node.op_type != "Conv" or not is_plain(node) or ints(node, "strides", [1] * 3) != [1] * 3:
        return None
    kernel = weight_of(node.inputs[1])
    if kernel is None or kernel.ndim != 5 or kernel.shape[3:] != (3, 3) or sizes_of(node.outputs[0], 5) is None:
        return None
    depth = int(kernel.shape[2])
    margin = (depth - 1) // 2
    if depth % 2 == 0 or ints(node, "pads", [0] * 6) != [margin, 1, 1] * 2:
        return None
    up = _upsampling_before(node)
    if up is None:
        return None
    upsampled = weight_of(up.node.inputs[1])
    assert upsampled is not None
    inputs, between = upsampled.shape[:2]
    outputs = len(kernel)
    before = outputs * between * depth * 9 + between * inputs
    after = outputs * (inputs + 1) * depth * 4
    return up if before >= LEAST_GAIN * after else None


def _upsampling_before(node: onnx_ir.Node) -> _Upsampling | None:
    """The transposed convolution that a convolution reads alone: directly, or first of what is concatenated for it."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    if producer is None:
        return None
    first: onnx_ir.Node | None = producer
    if producer.op_type == "Concat" and producer.attributes["axis"].as_int() == 1:
        first = None if producer.inputs[0] is None else producer.inputs[0].producer()
    if first is None or first.op_type != "ConvTranspose" or not _is_doubling(first):
        return None
    alone = {first.outputs[0], producer.outputs[0]}
    if any(len(value.uses()) != 1 or value.is_graph_output() for value in alone):
        return None
    weight = weight_of(first.inputs[1])
    return None if weight is None else _Upsampling(first, slice(0, int(weight.shape[1])))


def _is_doubling(node: onnx_ir.Node) -> bool:
    weight = weight_of(node.inputs[1])
    return (
        weight is not None
        and weight.shape[2:] == (1, 2, 2)
        and ints(node, "strides", [1] * 3) == [1, 2, 2]
        and ints(node, "pads", [0] * 6) == [0] * 6
        and is_plain(node)
        and sizes_of(node.inputs[0], 5) is not None
    )


def _rewrite(graph: onnx_ir.Graph, node: onnx_ir.Node, up: _Upsampling) -> None:
    kernel, result = weight_of(node.inputs[1]), sizes_of(node.outputs[0], 5)
    assert kernel is not None and result is not None
    new = Replacement(graph, node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    doubled = _convolve_small(new, up.node, kernel[:, up.channels])
    rest = _rest(new, node, up)
    if rest is None:
        if bias is not None:
            numbers = weight_of(bias)
            assert numbers is not None
            doubled = new.op("Add", [doubled, new.constant(numbers.reshape(-1, 1, 1, 1))], result)
        new.settle(doubled)
        return
    weights = [rest, new.constant(kernel[:, up.channels.stop :]), *([bias] if bias is not None else [])]
    attributes = {"kernel_shape": list(kernel.shape[2:]), "pads": ints(node, "pads", [0] * 6)}
    new.settle(new.op("Add", [new.op("Conv", weights, result, attributes), doubled], result))


def _rest(new: Replacement, node: onnx_ir.Node, up: _Upsampling) -> onnx_ir.Value | None:
    """What else the convolution reads beside the doubled map."""
    assert node.inputs[0] is not None
    producer = node.inputs[0].producer()
    if producer is up.node:
        return None
    assert producer is not None
    others = list(producer.inputs[1:])
    if len(others) == 1:
        return others[0]
    sizes = sizes_of(node.inputs[0], 5)
    assert sizes is not None and isinstance(sizes[1], int)
    return new.op("Concat", others, [sizes[0], sizes[1] - up.channels.stop, *sizes[2:]], {"axis": 1})


def _convolve_small(new: Replacement, up: onnx_ir.Node, kernel: Matrix) -> onnx_ir.Value:
    """The convolution of the doubled map, `[B, O, T, 2h, 2w]`, from the small one `[B, C, T, h, w]`."""
    small, weight = up.inputs[0], weight_of(up.inputs[1])
    sizes = sizes_of(small, 5)
    assert small is not None and weight is not None and sizes is not None
    batch, inputs, frames, height, width = sizes
    assert isinstance(inputs, int) and isinstance(height, int) and isinstance(width, int)
    bias = weight_of(up.inputs[2]) if len(up.inputs) > 2 else None
    if bias is not None:
        small = new.op(
            "Pad",
            [small, new.constant(np.array([0] * 5 + [0, 1, 0, 0, 0])), new.constant(np.array(1.0))],
            [batch, inputs + 1, frames, height, width],
        )
    merged = merged_kernel(kernel, weight, bias)
    outputs, depth = len(kernel), int(kernel.shape[2])
    margin = (depth - 1) // 2
    pixels = new.op(
        "Conv",
        [small, new.constant(merged)],
        [batch, 4 * outputs, frames, height + 1, width + 1],
        {"kernel_shape": [depth, 2, 2], "pads": [margin, 1, 1] * 2},
    )
    return _interleaved(new, pixels, outputs)


def _interleaved(new: Replacement, pixels: onnx_ir.Value, outputs: int) -> onnx_ir.Value:
    """`[B, 4 O, T, h + 1, w + 1]`, channels (row parity, column parity, o) -> `[B, O, T, 2h, 2w]`.

    Odd rows and columns lie one cell further than even ones.
    """
    sizes = sizes_of(pixels, 5)
    assert sizes is not None
    batch, _, frames, rows, columns = sizes
    assert isinstance(rows, int) and isinstance(columns, int)
    height, width = rows - 1, columns - 1
    kinds = []
    for kind, (row, column) in enumerate(np.ndindex(2, 2)):
        starts = np.array([kind * outputs, row, column])
        stops = np.array([(kind + 1) * outputs, row + height, column + width])
        limits = [new.constant(starts), new.constant(stops), new.constant(np.array([1, 3, 4]))]
        kinds.append(new.op("Slice", [pixels, *limits], [batch, outputs, frames, height, width]))
    together = new.op("Concat", kinds, [batch, 4 * outputs, frames, height, width], {"axis": 1})
    parts = new.reshape(together, [batch, 2, 2, outputs, frames, height, width])
    mixed = new.transpose(parts, (0, 3, 4, 5, 1, 6, 2))
    return new.reshape(mixed, [batch, outputs, frames, 2 * height, 2 * width])


def merged_kernel(kernel: Matrix, weight: Matrix, bias: Matrix | None) -> Matrix:
    """The kernel on the small map: `[4 O, C or C + 1, depth, 2, 2]`, outputs (row parity, column parity, o).

    Args:
        kernel: of the convolution, `[O, M, depth, 3, 3]`.
        weight: of the transposed convolution, `[C, M, 1, 2, 2]`.
        bias: of the transposed convolution, `[M]`: the weight of a further channel of ones.
    """
    if bias is not None:
        ones = np.broadcast_to(bias[None, :, None, None, None], (1, *weight.shape[1:]))
        weight = np.concatenate([weight, ones])
    outputs, depth = kernel.shape[0], kernel.shape[2]
    merged = np.zeros((2, 2, outputs, weight.shape[0], depth, 2, 2))
    for row, column in np.ndindex(2, 2):
        for y, x in np.ndindex(3, 3):
            # Of output row 2 i + row, tap y reads doubled row 2 i + row + y - 1: row (row + y - 1) % 2 of a cell.
            (cell_y, sub_y), (cell_x, sub_x) = divmod(row + y - 1, 2), divmod(column + x - 1, 2)
            merged[row, column, :, :, :, cell_y + 1 - row, cell_x + 1 - column] += np.einsum(
                "omt,cm->oct", kernel[..., y, x], weight[:, :, 0, sub_y, sub_x]
            )
    return merged.reshape(4 * outputs, weight.shape[0], depth, 2, 2)
