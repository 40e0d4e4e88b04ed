"""Running a network over a volume window by window, with a bounded amount of memory.

Windows run with axis 0 outermost. Once the next window starts at plane z, no later one reaches a plane below
z: those planes are final and leave. Only as many planes as a window is deep are ever accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.threads import Team
from masksam_deploy.bundle.recipe import Recipe, Windows
from masksam_deploy.scan_path.resample import Shape3
from masksam_deploy.scan_path.sums_host import Mirroring, RollingSums, Scores, Sums
from masksam_deploy.scan_path.tiles import Tiling, cut_window, tiling, window_count

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


def network_calls(shape: Shape3, patch: Shape3, mirror_axes: tuple[int, ...], windows: Windows) -> int:
    """How often `stream_scores` will call the network."""
    return window_count(shape, patch, windows) * (1 << len(mirror_axes))


def stream_scores(
    data: NDArray[np.float32],
    patch: Shape3,
    predict: Predict | Pipeline,
    recipe: Recipe,
    *,
    mirror_axes: tuple[int, ...],
    accumulator: Accumulator,
    classes: int,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Scores]]:
    """Predict a volume window by window and yield its class scores, plane after plane.

    Args:
        data: network input `[C,D,H,W]`, float32. What windows see beyond it is not part of the result.
        patch: window shape (T, P, P).
        predict: the network, `[1,C,T,P,P]` to `[1,classes,T,P,P]`, both float32. It may reuse its result's
            memory in the next call. Or one that works ahead.
        recipe: of the bundle: where windows lie, what is done to each, and to its scores before they are averaged.
        mirror_axes: spatial axes to average predictions of mirrored windows over: those of the recipe, or none.
        accumulator: "float16" repeats nnU-Net's rounding after every window, "float32" does not round.
        classes: K.
        threads: for the sums, at least 1; the result does not depend on it.
        progress: called with (done, total) network calls after each window.

    Yields:
        (plane, scores `[K,1,H,W]` in the accumulator's dtype), in order and without gaps; arrays of the library that
        the pipeline's sums use, if it brings some.

    Raises:
        ValueError: arguments that contradict each other, see also `tiling`; raised at the call, not at the first plane.
        BackendError: from the iterator, when a prediction has the wrong shape or is not finite, or float16
            sums overflow.
        ScanError: from the iterator, when a step on a window overflows.
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
    depth, height, width = data.shape[1:]
    return _stream(
        data,
        tiling((depth, height, width), patch, recipe.windows),
        network,
        recipe,
        mirrorings=_mirrorings(mirror_axes),
        half=accumulator == "float16",
        classes=classes,
        threads=threads,
        progress=progress,
    )


def _stream(
    data: NDArray[np.float32],
    tiles: Tiling,
    network: Pipeline,
    recipe: Recipe,
    *,
    mirrorings: list[Mirroring],
    half: bool,
    classes: int,
    threads: int,
    progress: Progress | None,
) -> Iterator[tuple[int, Scores]]:
    depth, height, width = data.shape[1:]
    patch, padded, low = tiles.patch, tiles.padded, tiles.low
    rows, columns = slice(low[1], low[1] + height), slice(low[2], low[2] + width)
    z_starts, y_starts, x_starts = tiles.starts
    total, done = tiles.count * len(mirrorings), 0
    # Windows that run together start at the same plane: those before it are final once the layer is done.
    layers = [_together(z, list(product(y_starts, x_starts)), network.batch) for z in z_starts]
    images = _images(data, tiles, recipe, [starts for layer in layers for starts in layer], mirrorings)
    predictions = network.predict_all(images)
    with Team(threads) as team:
        sums: Sums = (
            network.sums(classes, patch, padded[1:])
            if network.sums
            else RollingSums(classes, patch, padded[1:], half, team, recipe.windows.weight, recipe.scores.before_sum)
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


def _together(z: int, corners: Sequence[tuple[int, int]], batch: int) -> list[list[Shape3]]:
    """The starts of one layer's windows, in runs of at most `batch`."""
    starts = [(z, y, x) for y, x in corners]
    return [starts[first : first + batch] for first in range(0, len(starts), batch)]


def _mirrorings(mirror_axes: tuple[int, ...]) -> list[Mirroring]:
    """Which axes to mirror, in nnU-Net's order, none first."""
    return [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]


def _images(
    data: NDArray[np.float32],
    tiles: Tiling,
    recipe: Recipe,
    runs: Sequence[Sequence[Shape3]],
    mirrorings: Sequence[Mirroring],
) -> Iterator[NDArray[np.float32]]:
    """What the network runs on: each run of windows `[B,C,T,P,P]` in every mirroring."""
    for starts in runs:
        windows = np.concatenate([cut_window(data, start, tiles, recipe) for start in starts])
        for axes in mirrorings:
            yield np.ascontiguousarray(np.flip(windows, tuple(axis + 2 for axis in axes)))


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
