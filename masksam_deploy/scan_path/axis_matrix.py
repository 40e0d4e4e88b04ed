"""Resizing one axis as a matrix: edges, spline prefilter and interpolation in one.

Where output i lies among the inputs depends on the coordinates of the recipe:

* `centres`: at `(i + 0.5) * old / new - 0.5`; the outermost voxels are repeated beyond the axis. This is
  `scipy.ndimage.zoom(mode="nearest", grid_mode=True)` and `skimage.transform.resize(mode="edge", anti_aliasing=False)`.
* `corners`: at `i * (old - 1) / (new - 1)`; the axis is mirrored at its outermost voxels, and an output that rounding
  puts behind the last input is 0. This is `scipy.ndimage.zoom` as it is by default.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Coordinates: TypeAlias = Literal["centres", "corners"]
Matrix: TypeAlias = NDArray[np.float64]

_SPLINE_PADDING = 12  # scipy.ndimage pads this many edge voxels before the prefilter in mode "nearest"
_SPLINE_POLE = np.sqrt(3.0) - 2.0
_NEGLIGIBLE = 1e-18  # spline tails below this cannot change a double sum of intensities


def axis_matrix(old: int, new: int, order: int, coordinates: Coordinates = "centres") -> Matrix:
    """The matrix `[new, old]` that resizes an axis of `old` voxels to `new` with a spline of order 0, 1 or 3.

    It equals SciPy's zoom up to rounding. Entries too small to matter are exact zeros. Equal sizes give the identity.

    Raises:
        ValueError: a size below 1, or another order.
    """
    if old < 1 or new < 1:
        raise ValueError(f"cannot resize an axis of {old} voxels to {new}; both must be at least 1")
    if order not in (0, 1, 3):
        raise ValueError(f"spline order {order} is not supported, expected 0, 1 or 3")
    if old == new:
        return np.eye(old)
    if coordinates == "centres":
        # The order of operations is SciPy's: for order 0 the last bit decides between two voxels.
        source = (np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5
        return _cubic(source, old) if order == 3 else _local(source, old, order)
    # Again SciPy's: the last bit decides whether the last output is 0.
    source = np.arange(new, dtype=np.float64) * ((old - 1) / (new - 1) if new > 1 else 1.0)
    matrix = _mirrored_cubic(source, old) if order == 3 else _local(source, old, order)
    matrix[source > old - 1] = 0.0
    return matrix


def _local(source: Matrix, old: int, order: int) -> Matrix:
    """Nearest (0) or linear (1) interpolation at `source`, which is taken back into the axis."""
    inside = np.clip(source, 0.0, old - 1.0)
    rows = np.arange(len(inside))
    matrix = np.zeros((len(inside), old))
    if order == 0:
        matrix[rows, np.floor(inside + 0.5).astype(np.intp)] = 1.0
        return matrix
    left = np.floor(inside).astype(np.intp)
    left_weight = 1.0 - (inside - left)
    matrix[rows, np.minimum(left + 1, old - 1)] = 1.0 - left_weight
    matrix[rows, left] += left_weight
    return matrix


def _cubic(source: Matrix, old: int) -> Matrix:
    """Cubic interpolation at `source` of an axis whose outermost voxels are repeated."""
    prefilter = _edge_prefilter(old + 2 * _SPLINE_PADDING)
    first, weights = _taps(source)
    padded = np.zeros((source.size, prefilter.shape[1]))
    for tap, weight in enumerate(weights):
        padded += weight[:, None] * prefilter[first + _SPLINE_PADDING + tap]
    matrix: Matrix = padded[:, _SPLINE_PADDING : _SPLINE_PADDING + old].copy()
    matrix[:, 0] += padded[:, :_SPLINE_PADDING].sum(axis=1)
    matrix[:, -1] += padded[:, _SPLINE_PADDING + old :].sum(axis=1)
    matrix[np.abs(matrix) < _NEGLIGIBLE] = 0.0
    return matrix


def _mirrored_cubic(source: Matrix, old: int) -> Matrix:
    """Cubic interpolation at `source` of an axis that is mirrored at the centres of its outermost voxels."""
    if old == 1:
        return np.ones((source.size, 1))
    prefilter = _mirror_prefilter(old)
    first, weights = _taps(source)
    period = 2 * (old - 1)
    matrix = np.zeros((source.size, old))
    for tap, weight in enumerate(weights):
        place = (first + tap) % period
        matrix += weight[:, None] * prefilter[np.minimum(place, period - place)]
    matrix[np.abs(matrix) < _NEGLIGIBLE] = 0.0
    return matrix


def _taps(source: Matrix) -> tuple[NDArray[np.intp], list[Matrix]]:
    """The first of the four spline coefficients that each output uses, and the weights of all four."""
    knot = np.floor(source)
    t = source - knot
    s = 1.0 - t
    weights = [s**3 / 6, (t * t * (t - 2) * 3 + 4) / 6, (s * s * (s - 2) * 3 + 4) / 6]
    weights.append(1.0 - weights[0] - weights[1] - weights[2])
    return knot.astype(np.intp) - 1, weights


def _edge_prefilter(size: int) -> Matrix:
    """The inverse `[size, size]` of cubic B-spline sampling on a signal mirrored about its outer voxel edges.

    Its impulse response is sqrt(3) * pole**|distance|; the mirror images of a voxel add theirs.
    """
    response = np.sqrt(3.0) * _SPLINE_POLE ** np.arange(2 * size + 1, dtype=np.float64)
    i = np.arange(size)[:, None]
    j = np.arange(size)[None, :]
    distance = np.abs(i - j)
    mirrored = i + j + 1
    # The mirrored signal repeats every 2 * size; sizes are at least 25, so one period back is enough.
    matrix = response[distance] + response[2 * size - distance]
    matrix += response[mirrored] + response[2 * size - mirrored]
    return np.asarray(matrix, dtype=np.float64)


def _mirror_prefilter(size: int) -> Matrix:
    """The inverse `[size, size]` of cubic B-spline sampling on a signal mirrored at its outermost voxel centres.

    As in `_edge_prefilter`, but the period is 2 * (size - 1), which may be short: all periods are summed (a geometric
    series), and the outermost voxels are their own mirror images.
    """
    period = 2 * (size - 1)
    distances = np.arange(period + 1, dtype=np.float64)
    decay = _SPLINE_POLE**distances
    response = np.sqrt(3.0) * (decay + decay[::-1]) / (1.0 - _SPLINE_POLE**period)
    i = np.arange(size)[:, None]
    j = np.arange(size)[None, :]
    matrix = response[np.abs(i - j)]
    matrix[:, 1:-1] += response[i + j][:, 1:-1]
    return np.asarray(matrix, dtype=np.float64)
