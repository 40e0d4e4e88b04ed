"""From class scores on the network grid to labels on the scan's grid (nnU-Net v2.5.1's export).

Scores are resampled, decided and painted one slab of planes at a time, class by class: no volume of K classes
ever exists on the scan's grid, and of the network's grid only the planes the next slab needs are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.threads import Team
from masksam_deploy.bundle.manifest import Decision, Labels, Resampling
from masksam_deploy.scan_path.decision import LabelMap, decide, palette_of
from masksam_deploy.scan_path.prepare import ScanFrame
from masksam_deploy.scan_path.resample import Floats, Limits, Resampler, resampler
from masksam_deploy.scan_path.sums_host import round_to_float16

_SLAB_BYTES = 2 << 20  # a plane of 512 x 512: stays in the cache from class to class
_SPLINE_SLAB_BYTES = 16 << 20  # every slab reads 60 planes more than it writes, so make fewer
_GROUP_BYTES = 4 << 20  # of scores in double
_BLOCK_VOXELS = 1 << 16  # of one class, decided at a time: what a block needs stays in the cache


def labels_from_scores(
    planes: Iterable[tuple[int, NDArray[np.floating[Any]]]],
    frame: ScanFrame,
    resampling: Resampling,
    labels: Labels,
    *,
    threads: int = 1,
) -> LabelMap:
    """Consume a stream of class scores and return the label map in scan space.

    float16 scores are treated as nnU-Net does: resampled in float64, rounded to float16, and decided by the
    argmax of a float32 softmax, which merges the smallest differences. float32 scores are resampled in
    float32 and decided by their own argmax. The lowest class wins a tie. Voxels outside the nonzero box
    are 0.

    With spline order 3 (never nnU-Net's default for scores) the clip range needs the scores of the whole
    network grid, which are then held as float32.

    Args:
        planes: (first plane, scores `[K,n,H,W]`) in order, as `stream_scores` yields them on `frame`'s
            network grid; all float16 or all float32, finite.
        frame: how that grid relates to the scan.
        resampling: the bundle's `resample_scores`.
        labels: what the K classes mean.
        threads: at least 1; the result does not depend on it.

    Returns:
        `[Z,Y,X]`, uint8 or, if a label value exceeds 255, uint16.

    Raises:
        BundleError: K differs from the number of classes in `labels`.
        ValueError: planes out of order or missing, or of another size than the network grid.
    """
    plan = resampler(frame.network_shape, frame.cropped_shape, frame.network_spacing, frame.scan_spacing, resampling)
    palette = palette_of(labels)
    result = np.zeros(frame.geometry.shape_zyx, palette.dtype)
    # A view: what is painted here lands in scan space, transposed back and in its place.
    box = result.transpose(frame.transpose)[frame.slices]
    window = PlaneWindow(planes, frame.network_shape, len(palette))
    limits = window.limits(plan) if plan.clips and not plan.is_identity else None
    is_spline = 3 in (resampling.order, resampling.order_z)
    decided: int | None = None
    with Team(threads) as team:
        for start, stop in plan.slabs(frame.network_shape, _SPLINE_SLAB_BYTES if is_spline else _SLAB_BYTES):
            used = plan.maps[0].used(start, stop)
            # Nearest neighbour across the slices repeats planes: decide each once.
            repeats = stop - start == 1 and used.tolist() == [decided]
            if repeats:
                box[start] = box[start - 1]
                continue
            window.advance(int(plan.maps[0].needed_from[start]), int(used[-1]))
            scores = _resample(window, plan, start, stop, limits, team)
            _paint(scores, palette, box[start:stop], labels.decision, window.half, team)
            decided = int(used[0]) if stop - start == 1 and used.size == 1 else None
    window.finish()
    return result


class PlaneWindow:
    """The planes of the stream that are still needed, by their index on the network grid.

    Args:
        stream: see `labels_from_scores`; arrays of any library with NumPy's methods.
        shape: of the network grid.
        classes: K.
    """

    def __init__(
        self,
        stream: Iterable[tuple[int, Any]],
        shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        self._stream = iter(stream)
        self._shape = shape
        self.classes = classes
        self._planes: dict[int, Any] = {}
        self._arrived = 0
        self.half = False

    def advance(self, first: int, last: int) -> None:
        """Read the stream up to plane `last` and forget the planes before `first`.

        Raises:
            BundleError, ValueError: see `labels_from_scores`.
        """
        while self._arrived <= last:
            self._read()
        for index in [index for index in self._planes if index < first]:
            del self._planes[index]

    def plane(self, index: int) -> Any:
        """The scores `[K,H,W]` of one plane that was read and not forgotten."""
        return self._planes[index]

    def limits(self, plan: Resampler) -> Limits:
        """Read everything and return the limits of all classes, to broadcast to `[D,K,H,W]`."""
        while self._arrived < self._shape[0]:
            self._read()
        every = np.arange(self._shape[0])
        limits = [plan.limits(self.select(every, slice(k, k + 1))[:, 0]) for k in range(self.classes)]
        lows, highs = zip(*limits, strict=True)
        return np.stack(lows, axis=1), np.stack(highs, axis=1)

    def select(self, used: NDArray[np.intp], classes: slice) -> Floats:
        """Planes `used` of some classes, `[n,K,H,W]`."""
        return np.stack([self._planes[int(plane)][classes] for plane in used])

    def scores(self, start: int, stop: int) -> list[Floats]:
        """Planes `start` to `stop` of each class, `[n,H,W]`."""
        planes = np.stack([self._planes[plane] for plane in range(start, stop)])
        return list(planes.swapaxes(0, 1))

    def finish(self) -> None:
        """Read what no output depends on, so that a stream that is too long or too short is noticed."""
        while self._arrived < self._shape[0]:
            self._read()
        if next(self._stream, None) is not None:
            raise ValueError(f"the stream holds more than the {self._shape[0]} planes of the network grid")

    def _read(self) -> None:
        start, scores = next(self._stream, (-1, None))
        if scores is None or start != self._arrived:
            found = "ends" if scores is None else f"continues with plane {start}"
            raise ValueError(f"the stream {found}, expected plane {self._arrived} of {self._shape[0]}")
        if len(scores) != self.classes:
            raise BundleError(
                f"the network scores {len(scores)} classes, the manifest names {self.classes}; export the bundle again"
            )
        if scores.shape[2:] != self._shape[1:]:
            raise ValueError(f"score planes are {scores.shape[2:]}, expected {self._shape[1:]}")
        self.half = scores.dtype == np.float16
        # Exact, and once here is cheaper than for every output plane that uses it.
        scores = scores.astype(np.float32, copy=False)
        for offset in range(scores.shape[1]):
            self._planes[start + offset] = scores[:, offset]
        self._arrived += scores.shape[1]


def _resample(
    window: PlaneWindow, plan: Resampler, start: int, stop: int, limits: Limits | None, team: Team
) -> list[Floats]:
    """Scores `[stop - start, H', W']` of each class in a slab of the box, float32 (in float16 mode float16 numbers)."""
    if plan.is_identity:
        return window.scores(start, stop)
    used = plan.maps[0].used(start, stop)
    dtype = np.float64 if window.half else np.float32
    scores: list[Floats] = [np.empty(0, np.float32)] * window.classes

    def resample_classes(first: int) -> None:
        classes = slice(first, first + step)
        clip = None if limits is None else (limits[0][:, classes], limits[1][:, classes])
        planes = plan.planes(window.select(used, classes), start, stop, clip, dtype)
        if window.half:
            round_to_float16(planes)
        scores[classes] = planes.astype(np.float32, copy=False).swapaxes(0, 1)

    # Enough classes at once that a product is worth its call, few enough to stay in the cache.
    step = max(1, _GROUP_BYTES // (8 * (stop - start) * math.prod(plan.new_shape[1:])))
    team.each(resample_classes, range(0, window.classes, step))
    return scores


def _paint(
    scores: list[Floats],
    palette: LabelMap,
    out: LabelMap,
    decision: Decision,
    as_softmax: bool,
    team: Team,
) -> None:
    """Decide a slab, `[n,H,W]` of each class, and paint it into `out` `[n,H,W]`, a few rows at a time."""

    def paint_rows(top: int) -> None:
        rows = slice(top, top + step)
        block = [score[:, rows] for score in scores]
        out[:, rows] = decide(block, palette, decision, as_softmax=as_softmax)

    depth, height, width = scores[0].shape
    step = max(1, _BLOCK_VOXELS // (depth * width))
    team.each(paint_rows, range(0, height, step))
