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

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.threads import Team
from masksam_deploy.scan_path.resample import Shape3
from masksam_deploy.scan_path.sums_host import Mirroring, RollingSums, Scores, Sums

Predict: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
PredictAll: TypeAlias = Callable[[Iterator[NDArray[np.float32]]], Iterator[Any]]
MakeSums: TypeAlias = Callable[[int, Shape3, tuple[int, int]], Sums]
"""Makes sums for classes, the patch, and the shape of a padded plane."""
Progress: TypeAlias = Callable[[int, int], None]
Accumulator: TypeAlias = Literal["float16", "float32"]


@dataclass(frozen=True)
class Pipeline:
    """A network that works ahead, or on several windows at once.

    Attributes:
        predict_all: images `[B,C,T,P,P]` to scores `[B,classes,T,P,P]`, in order; it may take images before it gives
            the scores of earlier ones, and may reuse scores' memory once the next are asked for.
        batch: largest B.
        sums: what takes the scores, where they are no NumPy arrays: they stay there, and so do the planes that leave.
    """

    predict_all: PredictAll
    batch: int = 1
    sums: MakeSums | None = None


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


def stream_scores(
    data: NDArray[np.float32],
    patch: Shape3,
    predict: Predict | Pipeline,
    *,
    mirror_axes: tuple[int, ...],
    accumulator: Accumulator,
    classes: int,
    step: float = 0.5,
    threads: int = 1,
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
        threads: for the sums, at least 1; the result does not depend on it.
        progress: called with (done, total) network calls after each window.

    Yields:
        (plane, scores `[K,1,H,W]` in the accumulator's dtype), in order and without gaps; arrays of the library that
        the pipeline's sums use, if it brings some.

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
    network = predict if isinstance(predict, Pipeline) else Pipeline(partial(map, predict))
    if network.sums and accumulator == "float16":
        raise ValueError("the pipeline brings sums of its own, which round as they do; expected accumulator 'float32'")
    return _stream(
        data,
        patch,
        network,
        mirror_axes=mirror_axes,
        half=accumulator == "float16",
        classes=classes,
        step=step,
        threads=threads,
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
    threads: int,
    progress: Progress | None,
) -> Iterator[tuple[int, Scores]]:
    depth, height, width = data.shape[1:]
    padded, low = _padding((depth, height, width), patch)
    rows, columns = slice(low[1], low[1] + height), slice(low[2], low[2] + width)
    z_starts, y_starts, x_starts = (window_starts(padded[axis], patch[axis], step) for axis in range(3))
    mirrorings = _mirrorings(mirror_axes)
    total = network_calls((depth, height, width), patch, mirror_axes, step)
    done = 0
    # Windows that run together start at the same plane: those before it are final once the layer is done.
    layers = [_together(z, list(product(y_starts, x_starts)), network.batch) for z in z_starts]
    images = _images(data, patch, low, [starts for layer in layers for starts in layer], mirrorings)
    predictions = network.predict_all(images)
    with Team(threads) as team:
        sums: Sums = (
            network.sums(classes, patch, padded[1:])
            if network.sums
            else RollingSums(classes, patch, padded[1:], half, team)
        )
        for layer, z, next_z in zip(layers, z_starts, [*z_starts[1:], padded[0]], strict=True):
            for starts in layer:
                mirrored = _checked(predictions, mirrorings, (len(starts), classes, *patch), starts)
                for start, scores in zip(starts, sums.mean(mirrored, len(mirrorings), starts), strict=True):
                    sums.add(scores, start)
                done += len(mirrorings) * len(starts)
                if progress:
                    progress(done, total)
            for plane in range(max(z, low[0]), min(next_z, low[0] + depth)):
                yield plane - low[0], sums.average(plane, rows, columns)
            sums.forget(z, next_z)


def _padding(shape: Shape3, patch: Shape3) -> tuple[Shape3, tuple[int, ...]]:
    """The grid that windows fill, and where on it the data begin."""
    padded = padded_shape(shape, patch)
    return padded, tuple((large - small) // 2 for large, small in zip(padded, shape, strict=True))


def _together(z: int, corners: Sequence[tuple[int, int]], batch: int) -> list[list[Shape3]]:
    """The starts of one layer's windows, in runs of at most `batch`."""
    starts = [(z, y, x) for y, x in corners]
    return [starts[first : first + batch] for first in range(0, len(starts), batch)]


def _mirrorings(mirror_axes: tuple[int, ...]) -> list[Mirroring]:
    """Which axes to mirror, in nnU-Net's order, none first."""
    return [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]


def _images(
    data: NDArray[np.float32],
    patch: Shape3,
    low: tuple[int, ...],
    runs: Sequence[Sequence[Shape3]],
    mirrorings: Sequence[Mirroring],
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
    padded, low = _padding((depth, height, width), patch)
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


def _checked(
    predictions: Iterator[Any], mirrorings: Sequence[Mirroring], expected: tuple[int, ...], starts: Sequence[Shape3]
) -> Iterator[tuple[Mirroring, Any]]:
    """The network's next scores `[B,K,T,P,P]`, one for each mirroring, their shape checked."""
    for mirroring in mirrorings:
        scores = next(predictions)
        if scores.shape != expected:
            several = f"the windows from {starts[0]} to {starts[-1]}"
            where = f"the window at {starts[0]}" if len(starts) == 1 else several
            raise BackendError(
                f"the network returned scores of shape {scores.shape} for {where}, "
                f"expected {expected}; the graphs do not fit the manifest, export the bundle again"
            )
        yield mirroring, scores
