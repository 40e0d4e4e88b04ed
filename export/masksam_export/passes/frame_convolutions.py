"""3D convolutions whose products along the frames are Toom-Cook's: fewer multiplications for the same function.

Three taps over T frames cost 3 T products of planes. A tile of m output frames needs m + 2: the frames are combined
into m + 2 sums, each is convolved in its plane with a combination of the taps' kernels, and the results are combined
into m frames (Winograd's F(m, 3), here along one axis, where the combinations are small matrix products). With four
frames that halves the work. Sums with small integer factors come first, so that float32 loses about one digit; the
combined kernels are computed once, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir

from masksam_export.passes.rewriting import Matrix, Replacement, ints, is_plain, sizes_of, weight_of

TAPS = 3
LARGEST_TILE = 4
"""F(5, 3) and more save little and lose digits."""
SMALLEST_WORK = 64
"""Multiplications for each number read, below which the convolution waits for memory anyway."""


@dataclass(frozen=True)
class TileMatrices:
    """F(m, 3): output frames = `after` @ ((`kernels` @ taps) * (`before` @ frames)).

    Attributes:
        before: `[m + 2, m + 2]`, on the tile's input frames, one more on either side than it has outputs.
        kernels: `[m + 2, 3]`, on the taps.
        after: `[m, m + 2]`, on the products.
    """

    before: Matrix
    kernels: Matrix
    after: Matrix


def tile_matrices(outputs: int) -> TileMatrices:
    """Toom-Cook's matrices for the points 0, 1, -1, 2, -2, ... and infinity.

    A correlation is the transpose of a product of polynomials, so the matrices that evaluate and interpolate
    polynomials change places (Winograd, Arithmetic Complexity of Computations, 1980).
    """
    size = outputs + TAPS - 1
    points = np.array([0.0, 1.0, -1.0, 2.0, -2.0][: size - 1])
    evaluate = np.vstack([np.vander(points, size, increasing=True), np.eye(size)[-1]])
    interpolate = np.linalg.inv(evaluate)
    scale = np.abs(np.array([np.prod(point - np.delete(points, i)) for i, point in enumerate(points)] + [1.0]))
    return TileMatrices(
        before=np.rint(interpolate.T * scale[:, None]),  # whole numbers, but for rounding
        kernels=_evaluate(points, TAPS) / scale[:, None],
        after=_evaluate(points, outputs).T,
    )


def _evaluate(points: Matrix, coefficients: int) -> Matrix:
    """`[points + 1, coefficients]`: a polynomial's values at the points, and its leading coefficient."""
    return np.vstack([np.vander(points, coefficients, increasing=True), np.eye(coefficients)[-1]])


def best_tile(frames: int) -> int | None:
    """The tile with the fewest products for so many frames, the smaller of two; None if none saves any."""
    costs = {m: -(-frames // m) * (m + TAPS - 1) for m in range(2, LARGEST_TILE + 1)}
    best = min(costs, key=lambda m: (costs[m], m))
    return best if costs[best] < TAPS * frames else None


def save_frame_products(model: onnx_ir.Model) -> int:
    """Rewrite every 3D convolution with three taps along the frames for which that pays; how many there were."""
    found = [(node, tile) for node in model.graph if (tile := _tile_for(node)) is not None]
    for node, tile in found:
        _rewrite(model.graph, node, tile)
    return len(found)


def _tile_for(node: onnx_ir.Node) -> int | None:
    """The tile for a convolution that can be rewritten and is worth it."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return None
    sizes, kernel = sizes_of(node.inputs[0], 5), weight_of(node.inputs[1])
    if sizes is None or kernel is None or kernel.ndim != 5 or kernel.shape[2] != TAPS:
        return None
    pads, strides = ints(node, "pads", [0] * 6), ints(node, "strides", [1] * 3)
    if not is_plain(node) or strides != [1] * 3 or (pads[0], pads[3]) != (1, 1) or _work(kernel) < SMALLEST_WORK:
        return None
    assert isinstance(sizes[2], int)
    return best_tile(sizes[2])


def _work(kernel: Matrix) -> float:
    """Multiplications for each number that is read or written."""
    outputs, inputs = kernel.shape[:2]
    return kernel.size / (inputs + outputs)


def _rewrite(graph: onnx_ir.Graph, node: onnx_ir.Node, tile: int) -> None:
    source, kernel = node.inputs[0], weight_of(node.inputs[1])
    sizes = sizes_of(source, 5)
    result = sizes_of(node.outputs[0], 5)
    assert source is not None and sizes is not None and kernel is not None and result is not None
    batch, inputs, frames, height, width = sizes
    _, outputs, _, new_height, new_width = result
    assert isinstance(frames, int) and isinstance(inputs, int) and isinstance(outputs, int)
    matrices, tiles = tile_matrices(tile), -(-frames // tile)
    products = tile + TAPS - 1
    new = Replacement(graph, node)

    rows = new.transpose(source, (0, 2, 1, 3, 4))
    sums = _combine(new, over_frames(matrices.before, frames, tile), rows)
    sums = new.reshape(sums, [None, products * inputs, height, width])
    combined = np.einsum("pt,oithw->poihw", matrices.kernels, kernel).reshape(-1, inputs, *kernel.shape[3:])
    weights = [new.constant(combined)]
    bias = weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        weights.append(new.constant(np.outer(_bias_shares(matrices.after), bias).ravel()))
    pads = ints(node, "pads", [0] * 6)
    attributes = {"group": products, "kernel_shape": list(kernel.shape[3:]), "pads": [*pads[1:3], *pads[4:]]}
    sums = new.op("Conv", [sums, *weights], [None, products * outputs, new_height, new_width], attributes)
    sums = new.reshape(sums, [batch, tiles * products, outputs, new_height, new_width])
    rows = _combine(new, from_products(matrices.after, frames), sums)
    new.settle(new.transpose(rows, (0, 2, 1, 3, 4)))


def _combine(new: Replacement, matrix: Matrix, rows: onnx_ir.Value) -> onnx_ir.Value:
    """`matrix [n, T]` times `rows [B, T, c, h, w]` -> `[B, n, c, h, w]`."""
    sizes = sizes_of(rows, 5)
    assert sizes is not None
    batch, frames, *rest = sizes
    flat = new.reshape(rows, [batch, frames, math.prod(size for size in rest if isinstance(size, int))])
    product = new.op("MatMul", [new.constant(matrix), flat], [batch, len(matrix), None])
    return new.reshape(product, [batch, len(matrix), *rest])


def over_frames(before: Matrix, frames: int, tile: int) -> Matrix:
    """`[tiles * products, frames]`: `before` on every tile, frames beyond the ends being zero."""
    tiles, products = -(-frames // tile), len(before)
    matrix = np.zeros((tiles, products, frames))
    for index in range(tiles):
        for place in range(products):
            frame = index * tile + place - 1
            if 0 <= frame < frames:
                matrix[index, :, frame] = before[:, place]
    return matrix.reshape(-1, frames)


def from_products(after: Matrix, frames: int) -> Matrix:
    """`[frames, tiles * products]`: every tile's outputs, those beyond the last frame left out."""
    tiles = -(-frames // len(after))
    return np.kron(np.eye(tiles), after)[:frames].astype(np.float64)


def _bias_shares(after: Matrix) -> Matrix:
    """What each product's bias must be for a bias of one in every output frame."""
    return np.linalg.lstsq(after, np.ones(len(after)), rcond=None)[0].astype(np.float64)
