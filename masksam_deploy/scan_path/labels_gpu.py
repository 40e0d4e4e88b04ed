"""From class scores on the GPU to the label map on the scan's grid."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from masksam_deploy.bundle.manifest import Labels
from masksam_deploy.bundle.recipe import Recipe, Scores
from masksam_deploy.scan_path.decision import LabelMap, decide, palette_of
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.gpu_arrays import Arrays
from masksam_deploy.scan_path.labels_host import PlaneWindow
from masksam_deploy.scan_path.resample import AxisMap, Resampler, Shape3, resampler


def why_not_on_gpu(recipe: Recipe) -> str | None:
    """Why scores of a recipe have to come to the host, in words; None if they need not."""
    if recipe.scores.before_sum != "none":
        return f"this bundle averages probabilities ({recipe.scores.before_sum}), which is done on the host only"
    if recipe.windows.weight != "gaussian":
        return f"this bundle weighs windows {recipe.windows.weight}ly, which is done on the host only"
    return _why_not_decided(recipe.scores)


def _why_not_decided(scores: Scores) -> str | None:
    if scores.bring_back == "labels":
        return "this bundle resamples labels, not scores, which is done on the host only"
    if 3 in (scores.resampling.order, scores.resampling.order_z):
        return "this bundle resamples scores with splines, which need those of the whole scan"
    return None


def labels_on_gpu(
    arrays: Arrays, planes: Iterable[tuple[int, Any]], frame: ScanFrame, scores: Scores, labels: Labels
) -> LabelMap:
    """The same as `labels_host.labels_from_scores` of float32 scores; only labels come to the host, plane by plane.

    Resampled scores are sums in another order than the host's: a voxel whose two best scores agree to about six digits
    may get the other class.

    Args:
        arrays: the library of the planes.
        planes: (first plane, scores `[K,n,H,W]`, float32, finite) in order.
        frame: how their grid relates to the scan.
        scores: of the recipe; resampled with order 0 or 1.
        labels: what the K classes mean.

    Returns:
        `[Z,Y,X]`, uint8 or uint16.

    Raises:
        BundleError, ValueError: see `labels_host.labels_from_scores`.
    """
    why_not = _why_not_decided(scores)
    if why_not:
        raise ValueError(f"found scores on the GPU, expected them on the host: {why_not}")
    spec = scores.resampling
    plan = resampler(frame.network_shape, frame.cropped_shape, frame.network_spacing, frame.scan_spacing, spec)
    palette = palette_of(labels)
    result = np.zeros(frame.geometry.shape_zyx, palette.dtype)
    box = frame.box_of(result)
    window = PlaneWindow(planes, frame.network_shape, len(palette))
    on_gpu = _Grid(arrays, plan)
    colours = arrays.xp.asarray(palette)
    for index in range(plan.new_shape[0]):
        if plan.maps[0].repeats(index):  # as the nearest neighbour across the slices does
            box[index] = box[index - 1]
            continue
        used = plan.maps[0].used(index, index + 1).tolist()
        window.advance(int(plan.maps[0].needed_from[index]), used[-1])
        box[index] = arrays.to_host(
            decide(on_gpu.resampled(window, index, used), colours, labels.decision, xp=arrays.xp)
        )
    window.finish()
    return result


def bytes_of_labels(classes: int, network_plane: tuple[int, int], scan_plane: tuple[int, int]) -> int:
    """GPU memory that `labels_on_gpu` holds at its widest: planes that wait, one resampled in steps, what is decided.

    Args:
        classes: K.
        network_plane: height and width of the network grid.
        scan_plane: the same of the scan's box.
    """
    waiting = 4 * classes * prod(network_plane)
    between = 4 * classes * max(prod(network_plane), scan_plane[0] * network_plane[1], prod(scan_plane))
    matrices = 4 * sum(new * old for new, old in zip(scan_plane, network_plane, strict=True))
    return 4 * waiting + 3 * between + matrices + 16 * prod(scan_plane)


class _Grid:
    """A resize whose in-plane matrices lie on the GPU."""

    def __init__(self, arrays: Arrays, plan: Resampler) -> None:
        self._xp = arrays.xp
        self._weights = plan.maps[0].matrix
        self._rows, self._columns = (self._uploaded(axis_map) for axis_map in plan.maps[1:])
        self.new_shape: Shape3 = plan.new_shape

    def _uploaded(self, axis_map: AxisMap) -> Any | None:
        if axis_map.is_identity:
            return None
        return self._xp.asarray(axis_map.matrix.astype(np.float32))

    def resampled(self, window: PlaneWindow, index: int, used: list[int]) -> Any:
        """Scores `[K,H',W']` of an output plane, from the planes `[K,H,W]` that it depends on."""
        weights = self._weights[index].astype(np.float32)
        parts = (window.plane(plane) * weights[plane] if weights[plane] != 1 else window.plane(plane) for plane in used)
        scores = reduce(lambda total, part: total + part, parts)
        if self._rows is not None:
            scores = self._xp.matmul(self._rows, scores)
        return scores if self._columns is None else self._xp.matmul(scores, self._columns.T)
