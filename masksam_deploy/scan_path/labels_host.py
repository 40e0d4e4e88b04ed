"""From class scores on the network grid to labels on the scan's grid.

Scores are resampled, decided and painted one slab of planes at a time, class by class: no volume of K classes
ever exists on the scan's grid, and of the network's grid only the planes the next slab needs are kept. Where the recipe
brings labels back, planes are decided before they are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.threads import Team
from masksam_deploy.bundle.manifest import Decision, Labels
from masksam_deploy.bundle.recipe import Scores
from masksam_deploy.scan_path.decision import LabelMap, decide, palette_of
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.resample import AxisMap, Floats, Limits, Resampler, resampler
from masksam_deploy.scan_path.sums_host import round_to_float16

_SLAB_BYTES = 2 << 20  # a plane of 512 x 512: stays in the cache from class to class
_SPLINE_SLAB_BYTES = 16 << 20  # every slab reads 60 planes more than it writes, so make fewer
_GROUP_BYTES = 4 << 20  # of scores in double
_BLOCK_VOXELS = 1 << 16  # of one class, decided at a time: what a block needs stays in the cache


def labels_from_scores(
    planes: Iterable[tuple[int, NDArray[np.floating[Any]]]],
    frame: ScanFrame,
    scores: Scores,
    labels: Labels,
    *,
    threads: int = 1,
) -> LabelMap:
    """Consume a stream of class scores and return the label map in scan space.

    float16 scores are treated as nnU-Net does: resampled in float64, rounded to float16, and decided by the
    argmax of a float32 softmax, which merges the smallest differences. float32 scores are resampled in
    float32 and decided by their own argmax. The lowest class wins a tie. Voxels outside the box of the frame
    are 0, and so are those that the recipe's coordinates put behind the last voxel of the network's grid.

    Where splines of order 3 are clipped (never nnU-Net's default for scores), the range needs the scores of the whole
    network grid, which are then held as float32.

    Args:
        planes: (first plane, scores `[K,n,H,W]`) in order, as `stream_scores` yields them on `frame`'s
            network grid; all float16 or all float32, finite.
        frame: how that grid relates to the scan.
        scores: of the recipe.
        labels: what the K classes mean.
        threads: at least 1; the result does not depend on it.

    Returns:
        `[Z,Y,X]`, uint8 or, if a label value exceeds 255, uint16.

    Raises:
        BundleError: K differs from the number of classes in `labels`.
        ValueError: planes out of order or missing, or of another size than the network grid; or labels are to be
            resampled with splines.
    """
    spec = scores.resampling
    if scores.bring_back == "labels" and (spec.order, spec.order_z) != (0, 0):
        raise ValueError(f"labels cannot be resampled with splines ({spec}), expected order 0: nothing is between them")
    plan = resampler(frame.network_shape, frame.cropped_shape, frame.network_spacing, frame.scan_spacing, spec)
    rule = _Rule(palette_of(labels), labels.decision, scores.before_sum != "none")
    result = np.zeros(frame.geometry.shape_zyx, rule.palette.dtype)
    box = frame.box_of(result)  # a view: what is painted here lands in scan space
    window = PlaneWindow(planes, frame.network_shape, len(rule.palette))
    with Team(threads) as team:
        bring_back = _bring_labels_back if scores.bring_back == "labels" else _bring_scores_back
        bring_back(window, plan, rule, box, team)
    window.finish()
    return result


@dataclass(frozen=True, eq=False)
class _Rule:
    """How scores become label values.

    Attributes:
        palette: the value of each class, `[K]`.
        decision: of the bundle.
        probabilities: whether the scores are probabilities.
    """

    palette: LabelMap
    decision: Decision
    probabilities: bool


def _bring_scores_back(window: PlaneWindow, plan: Resampler, rule: _Rule, box: LabelMap, team: Team) -> None:
    """Resample scores, then decide, slab by slab."""
    limits = window.limits(plan) if plan.clips and not plan.is_identity else None
    along = plan.maps[0]
    for start, stop in plan.slabs(window.shape, _SPLINE_SLAB_BYTES if plan.splines else _SLAB_BYTES):
        # Nearest neighbour across the slices repeats planes: decide each once.
        if stop - start == 1 and along.repeats(start):
            box[start] = box[start - 1]
            continue
        window.advance(int(along.needed_from[start]), int(along.used(start, stop)[-1]))
        slab = _resample(window, plan, start, stop, limits, team)
        _paint(slab, rule, box[start:stop], window.half, team)


def _bring_labels_back(window: PlaneWindow, plan: Resampler, rule: _Rule, box: LabelMap, team: Team) -> None:
    """Decide on the network's grid, plane by plane, then take the nearest label."""
    along, (rows, no_row), (columns, no_column) = plan.maps[0], _nearest(plan.maps[1]), _nearest(plan.maps[2])
    decided = np.empty((1, *window.shape[1:]), rule.palette.dtype)
    for index in range(plan.new_shape[0]):
        if along.repeats(index):
            box[index] = box[index - 1]
            continue
        used = int(along.used(index, index + 1)[0])
        window.advance(int(along.needed_from[index]), used)
        if not along.matrix[index].any():
            continue
        _paint(window.scores(used, used + 1), rule, decided, window.half, team)
        plane = decided[0][np.ix_(rows, columns)]
        plane[no_row], plane[:, no_column] = 0, 0
        box[index] = plane


def _nearest(axis_map: AxisMap) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Per output of a map of order 0, the input that it takes, and whether it takes none."""
    return axis_map.matrix.argmax(axis=1), axis_map.matrix.max(axis=1) == 0


class PlaneWindow:
    """The planes of the stream that are still needed, by their index on the network grid.

    Args:
        stream: see `labels_from_scores`; arrays of any library with NumPy's methods.
        shape: of the network grid.
        classes: K.

    Attributes:
        shape: as given.
        classes: as given.
        half: whether the scores that were read are float16.
    """

    def __init__(
        self,
        stream: Iterable[tuple[int, Any]],
        shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        self._stream = iter(stream)
        self.shape = shape
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
        while self._arrived < self.shape[0]:
            self._read()
        every = np.arange(self.shape[0])
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
        while self._arrived < self.shape[0]:
            self._read()
        if next(self._stream, None) is not None:
            raise ValueError(f"the stream holds more than the {self.shape[0]} planes of the network grid")

    def _read(self) -> None:
        start, scores = next(self._stream, (-1, None))
        if scores is None or start != self._arrived:
            found = "ends" if scores is None else f"continues with plane {start}"
            raise ValueError(f"the stream {found}, expected plane {self._arrived} of {self.shape[0]}")
        if len(scores) != self.classes:
            raise BundleError(
                f"the network scores {len(scores)} classes, the manifest names {self.classes}; export the bundle again"
            )
        if scores.shape[2:] != self.shape[1:]:
            raise ValueError(f"score planes are {scores.shape[2:]}, expected {self.shape[1:]}")
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


def _paint(scores: list[Floats], rule: _Rule, out: LabelMap, half: bool, team: Team) -> None:
    """Decide a slab, `[n,H,W]` of each class, and paint it into `out` `[n,H,W]`, a few rows at a time."""

    def paint_rows(top: int) -> None:
        rows = slice(top, top + step)
        block = [score[:, rows] for score in scores]
        out[:, rows] = decide(
            block,
            rule.palette,
            rule.decision,
            as_softmax=half and not rule.probabilities,
            probabilities=rule.probabilities,
        )

    depth, height, width = scores[0].shape
    step = max(1, _BLOCK_VOXELS // (depth * width))
    team.each(paint_rows, range(0, height, step))
