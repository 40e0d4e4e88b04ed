"""Running a network over a volume window by window, nnU-Net v2.5.1's way, with a bounded amount of memory.

Windows run with axis 0 outermost. Once the next window starts at plane z, no later one reaches a plane below
z: those planes are final and leave. Only as many planes as a window is deep are ever accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.errors import BackendError
from masksam_deploy.resample import Shape3

Predict: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
PredictAll: TypeAlias = Callable[[Iterator[NDArray[np.float32]]], Iterator[NDArray[np.float32]]]
Progress: TypeAlias = Callable[[int, int], None]
Scores: TypeAlias = NDArray[np.floating[Any]]
Accumulator: TypeAlias = Literal["float16", "float32"]

GAUSSIAN_PEAK = 10.0
_SIGMA_PER_PATCH = 1 / 8
_TRUNCATE_SIGMAS = 4.0
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Pipeline:
    """A network that works ahead, or on several windows at once.

    Attributes:
        predict_all: images `[B,C,T,P,P]` to scores `[B,classes,T,P,P]`, in order; it may take images before it gives
            the scores of earlier ones, and may reuse scores' memory once the next are asked for.
        batch: largest B.
    """

    predict_all: PredictAll
    batch: int = 1


def window_starts(size: int, patch: int, step: float = 0.5) -> list[int]:
    """First voxels of the windows along one axis, in order.

    The fewest windows at most `step * patch` apart that cover the axis, evenly spread and rounded half to
    even. Very small patches repeat a start, as in nnU-Net (`compute_steps_for_sliding_window`).

    Args:
        size: voxels along the axis, at least `patch`.
        patch: voxels of a window.
        step: largest distance between windows as a fraction of the patch, in (0, 1].

    Raises:
        ValueError: arguments out of range.
    """
    if not 1 <= patch <= size or not 0 < step <= 1:
        raise ValueError(f"cannot place windows of {patch} on {size} voxels with step {step}")
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    if count == 1:
        return [0]
    distance = (size - patch) / (count - 1)
    return [int(np.round(distance * index)) for index in range(count)]


def padded_shape(shape: Shape3, patch: Shape3) -> Shape3:
    """`shape` with every axis shorter than the patch grown to it."""
    z, y, x = (max(size, window) for size, window in zip(shape, patch, strict=True))
    return (z, y, x)


def window_count(shape: Shape3, patch: Shape3, step: float = 0.5) -> int:
    """How many windows cover a volume of `shape` (before padding)."""
    padded = padded_shape(shape, patch)
    return math.prod(len(window_starts(padded[axis], patch[axis], step)) for axis in range(3))


def network_calls(shape: Shape3, patch: Shape3, mirror_axes: tuple[int, ...], step: float = 0.5) -> int:
    """How often `stream_scores` will call the network."""
    return window_count(shape, patch, step) * (1 << len(mirror_axes))


def gaussian_weights(patch: Shape3) -> NDArray[np.float16]:
    """The weight of each voxel of a window, `[T,P,P]`, peak 10.

    The response of `scipy.ndimage.gaussian_filter` (sigma = patch / 8, constant border, truncated at 4 sigma)
    to an impulse at `patch // 2`, in float64, then float16 with zeros raised to the smallest entry (nnU-Net's
    `compute_gaussian`).
    """
    z, y, x = (_gaussian_axis(size) for size in patch)
    weights = (z[:, None, None] * y[None, :, None]) * x[None, None, :]
    weights /= weights.max() / GAUSSIAN_PEAK
    # By way of float32, as torch converts.
    half = weights.astype(np.float32).astype(np.float16)
    half[half == 0] = half[half != 0].min()
    return half


def _gaussian_axis(size: int) -> NDArray[np.float64]:
    sigma = size * _SIGMA_PER_PATCH
    radius = int(_TRUNCATE_SIGMAS * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / (sigma * sigma) * offsets**2)
    kernel /= kernel.sum()
    response = np.zeros(size)
    distance = np.arange(size) - size // 2
    reached = np.abs(distance) <= radius
    response[reached] = kernel[distance[reached] + radius]
    return response


def round_to_float16(values: Scores) -> None:
    """Round a contiguous float32 or float64 array in place to what float16 can hold, half to even.

    Equals a cast to float16 and back, subnormals included, for magnitudes below 65520 (larger ones are
    rounded as if float16 had no upper end), but takes a third of the time: adding and subtracting
    1.5 * 2**k leaves exactly the bits above the float16 step, where k puts that step in the last place.
    """
    if values.dtype == np.float32:
        bits, mantissa, bias = values.view(np.uint32), 23, 127
    else:
        bits, mantissa, bias = values.view(np.uint64), 52, 1023
    unsigned = bits.dtype.type
    exponents = bits & unsigned((2 * bias + 1) << mantissa)
    np.maximum(exponents, unsigned((bias - 14) << mantissa), out=exponents)
    exponents += unsigned(((mantissa - 10) << mantissa) | (1 << (mantissa - 1)))
    magic = exponents.view(values.dtype)
    values += magic
    values -= magic


class _RollingSums:
    """Weighted score sums of the planes that later windows may still reach."""

    def __init__(self, classes: int, patch: Shape3, plane: tuple[int, int], half: bool) -> None:
        self._patch = patch
        self._half = half
        self._weights = gaussian_weights(patch).astype(np.float32)
        self._scores = np.zeros((classes, patch[0], *plane), np.float32)
        self._totals = np.zeros((patch[0], *plane), np.float32)
        self._scratch = np.empty(patch, np.float32)

    def add(self, prediction: NDArray[np.float32], top: int, left: int) -> None:
        """Add one window's `[K,T,P,P]`; its first plane is the first kept one.

        float16 mode rounds after every window as nnU-Net's float16 sums do: the product and the sum are
        float32, the result is float16. Without it the sums are plain float32.
        """
        rows, columns = slice(top, top + self._patch[1]), slice(left, left + self._patch[2])
        weighted = self._scratch
        for sums, scores in zip(self._scores, prediction, strict=True):
            np.multiply(scores, self._weights, out=weighted)
            self._add_rounded(sums[:, rows, columns], weighted)
        np.copyto(weighted, self._weights)
        self._add_rounded(self._totals[:, rows, columns], weighted)

    def _add_rounded(self, sums: NDArray[np.float32], term: NDArray[np.float32]) -> None:
        term += sums
        if self._half:
            round_to_float16(term)
            largest = max(term.max(), -term.min())
            if largest > _FLOAT16_MAX:
                raise BackendError(
                    f"a weighted sum of class scores reached {largest:g}, expected at most 65504 (float16); "
                    "use the float32 accumulator"
                )
        sums[...] = term

    def average(self, plane: int, rows: slice, columns: slice) -> Scores:
        """The weighted mean scores `[K,1,H,W]` of one kept plane, in the accumulator's dtype."""
        keep = (slice(plane, plane + 1), rows, columns)
        scores = self._scores[(slice(None), *keep)] / self._totals[keep]
        return scores.astype(np.float16) if self._half else scores

    def drop(self, count: int) -> None:
        """Forget the first `count` planes."""
        for sums in (*self._scores, self._totals):
            kept = len(sums) - count
            sums[:kept] = sums[count:].copy()
            sums[kept:] = 0


def stream_scores(
    data: NDArray[np.float32],
    patch: Shape3,
    predict: Predict | Pipeline,
    *,
    mirror_axes: tuple[int, ...],
    accumulator: Accumulator,
    classes: int,
    step: float = 0.5,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Scores]]:
    """Predict a volume window by window and yield its class scores, plane after plane.

    Args:
        data: network input `[C,D,H,W]`, float32. Axes shorter than the patch are padded with 0 (the mean,
            after normalisation), low side `floor(missing / 2)`; the padding is not part of the result.
        patch: window shape (T, P, P).
        predict: the network, `[1,C,T,P,P]` to `[1,classes,T,P,P]`, both float32. It may reuse its result's
            memory in the next call. Or one that works ahead.
        mirror_axes: spatial axes to average predictions of mirrored windows over, as stored in the bundle.
        accumulator: "float16" repeats nnU-Net's rounding after every window, "float32" does not round.
        classes: K.
        step: see `window_starts`.
        progress: called with (done, total) network calls after each window.

    Yields:
        (plane, scores `[K,1,H,W]` in the accumulator's dtype), in order and without gaps.

    Raises:
        ValueError: arguments that contradict each other; raised at the call, not at the first plane.
        BackendError: from the iterator, when a prediction has the wrong shape or is not finite, or float16
            sums overflow.
    """
    if data.ndim != 4 or data.dtype != np.float32:
        raise ValueError(f"data is {data.dtype} {data.shape}, expected float32 [C,D,H,W]")
    if sorted(set(mirror_axes)) != sorted(mirror_axes) or not set(mirror_axes) <= {0, 1, 2}:
        raise ValueError(f"mirror_axes {mirror_axes} are not distinct axes out of 0, 1, 2")
    if accumulator not in ("float16", "float32"):
        raise ValueError(f"accumulator '{accumulator}' is unknown, expected 'float16' or 'float32'")
    return _stream(
        data,
        patch,
        predict if isinstance(predict, Pipeline) else Pipeline(partial(map, predict)),
        mirror_axes=mirror_axes,
        half=accumulator == "float16",
        classes=classes,
        step=step,
        progress=progress,
    )


def _stream(
    data: NDArray[np.float32],
    patch: Shape3,
    network: Pipeline,
    *,
    mirror_axes: tuple[int, ...],
    half: bool,
    classes: int,
    step: float,
    progress: Progress | None,
) -> Iterator[tuple[int, Scores]]:
    depth, height, width = data.shape[1:]
    padded = padded_shape((depth, height, width), patch)
    low = tuple((padded[axis] - data.shape[1 + axis]) // 2 for axis in range(3))
    rows, columns = slice(low[1], low[1] + height), slice(low[2], low[2] + width)
    z_starts, y_starts, x_starts = (window_starts(padded[axis], patch[axis], step) for axis in range(3))
    sums = _RollingSums(classes, patch, padded[1:], half)
    calls = 1 << len(mirror_axes)
    total = network_calls((depth, height, width), patch, mirror_axes, step)
    done = 0
    # Windows that run together start at the same plane: those before it are final once the layer is done.
    layers = [_together(z, list(product(y_starts, x_starts)), network.batch) for z in z_starts]
    images = _images(data, patch, low, [starts for layer in layers for starts in layer], _mirrorings(mirror_axes))
    predictions = network.predict_all(images)
    for layer, z, next_z in zip(layers, z_starts, [*z_starts[1:], padded[0]], strict=True):
        for starts in layer:
            means = _mean_of_mirrored(predictions, mirror_axes, (len(starts), classes, *patch), starts)
            for (_, y, x), scores in zip(starts, means, strict=True):
                sums.add(scores, y, x)
            done += calls * len(starts)
            if progress:
                progress(done, total)
        for plane in range(max(z, low[0]), min(next_z, low[0] + depth)):
            yield plane - low[0], sums.average(plane - z, rows, columns)
        sums.drop(next_z - z)


def _together(z: int, corners: Sequence[tuple[int, int]], batch: int) -> list[list[Shape3]]:
    """The starts of one layer's windows, in runs of at most `batch`."""
    starts = [(z, y, x) for y, x in corners]
    return [starts[first : first + batch] for first in range(0, len(starts), batch)]


def _mirrorings(mirror_axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Which axes to mirror, in nnU-Net's order, none first."""
    return [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]


def _images(
    data: NDArray[np.float32],
    patch: Shape3,
    low: tuple[int, ...],
    runs: Sequence[Sequence[Shape3]],
    mirrorings: Sequence[tuple[int, ...]],
) -> Iterator[NDArray[np.float32]]:
    """What the network runs on: each run of windows `[B,C,T,P,P]` in every mirroring."""
    for starts in runs:
        windows = np.concatenate([_cut_window(data, start, patch, low) for start in starts])
        for axes in mirrorings:
            yield np.ascontiguousarray(np.flip(windows, tuple(axis + 2 for axis in axes)))


def cut_windows(data: NDArray[np.float32], patch: Shape3, step: float = 0.5) -> Iterator[NDArray[np.float32]]:
    """The windows `[1,C,T,P,P]` that `stream_scores` runs the network on, in its order, unmirrored.

    Args:
        data: network input `[C,D,H,W]`, float32.
        patch: window shape (T, P, P).
        step: see `window_starts`.
    """
    depth, height, width = data.shape[1:]
    padded = padded_shape((depth, height, width), patch)
    low = tuple((padded[axis] - data.shape[1 + axis]) // 2 for axis in range(3))
    starts = (window_starts(padded[axis], patch[axis], step) for axis in range(3))
    for z, y, x in product(*starts):
        yield _cut_window(data, (z, y, x), patch, low)


def _cut_window(data: NDArray[np.float32], start: Shape3, patch: Shape3, low: tuple[int, ...]) -> NDArray[np.float32]:
    """The window `[1,C,T,P,P]` at a start given on the padded grid, without padding the whole volume."""
    window = np.zeros((1, data.shape[0], *patch), np.float32)
    source: tuple[slice, ...] = (slice(None),)
    target: tuple[slice, ...] = (slice(None),)
    for axis in range(3):
        offset = start[axis] - low[axis]
        begin, end = max(offset, 0), min(offset + patch[axis], data.shape[1 + axis])
        source = (*source, slice(begin, end))
        target = (*target, slice(begin - offset, end - offset))
    window[0][target] = data[source]
    return window


def _mean_of_mirrored(
    predictions: Iterator[NDArray[np.float32]],
    mirror_axes: tuple[int, ...],
    expected: tuple[int, ...],
    starts: Sequence[Shape3],
) -> NDArray[np.float32]:
    """The mean float32 prediction `[B,K,T,P,P]` over windows and their mirror images, in nnU-Net's order."""
    mirrorings = _mirrorings(mirror_axes)
    where = f"the window at {starts[0]}" if len(starts) == 1 else f"the windows from {starts[0]} to {starts[-1]}"
    total = np.zeros(0, np.float32)
    for mirroring in mirrorings:
        axes = tuple(axis + 2 for axis in mirroring)
        prediction = np.asarray(next(predictions), np.float32)
        if prediction.shape != expected:
            raise BackendError(
                f"the network returned scores of shape {prediction.shape} for {where}, "
                f"expected {expected}; the graphs do not fit the manifest, export the bundle again"
            )
        if not np.isfinite(prediction).all():
            mirrored = f" mirrored along axes {mirroring}" if mirroring else ""
            raise BackendError(
                f"the network returned scores that are not finite for {where}{mirrored}, "
                "expected finite numbers; use a wider precision (float32)"
            )
        if not mirroring:
            total = prediction.copy()
        else:
            total += np.flip(prediction, axes)
    if mirrorings[1:]:
        total /= len(mirrorings)
    return total
