"""From class scores on the GPU to the label map on the scan's grid."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from masksam_deploy.bundle.manifest import Labels, Resampling
from masksam_deploy.scan_path.decision import LabelMap, decide, palette_of
from masksam_deploy.scan_path.gpu_arrays import Arrays
from masksam_deploy.scan_path.labels_host import PlaneWindow
from masksam_deploy.scan_path.prepare import ScanFrame
from masksam_deploy.scan_path.resample import AxisMap, Resampler, Shape3, resampler


def can_resample(resampling: Resampling) -> bool:
    """Whether scores can be resampled plane by plane: splines need those of the whole grid, and the host."""
    return 3 not in (resampling.order, resampling.order_z)


def labels_on_gpu(
    arrays: Arrays, planes: Iterable[tuple[int, Any]], frame: ScanFrame, resampling: Resampling, labels: Labels
) -> LabelMap:
    """The same as `postprocess.labels_from_scores` of float32 scores; only labels come to the host, plane by plane.

    Resampled scores are sums in another order than the host's: a voxel whose two best scores agree to about six digits
    may get the other class.

    Args:
        arrays: the library of the planes.
        planes: (first plane, scores `[K,n,H,W]`, float32, finite) in order.
        frame: how their grid relates to the scan.
        resampling: the bundle's `resample_scores`, of order 0 or 1.
        labels: what the K classes mean.

    Returns:
        `[Z,Y,X]`, uint8 or uint16.

    Raises:
        BundleError, ValueError: see `postprocess.labels_from_scores`.
    """
    if not can_resample(resampling):
        raise ValueError(f"scores on the GPU cannot be resampled with splines ({resampling}); take the host's way")
    plan = resampler(frame.network_shape, frame.cropped_shape, frame.network_spacing, frame.scan_spacing, resampling)
    palette = palette_of(labels)
    result = np.zeros(frame.geometry.shape_zyx, palette.dtype)
    box = result.transpose(frame.transpose)[frame.slices]
    window = PlaneWindow(planes, frame.network_shape, len(palette))
    on_gpu = _Grid(arrays, plan)
    colours = arrays.xp.asarray(palette)
    decided: list[int] = []
    for index in range(plan.new_shape[0]):
        used = plan.maps[0].used(index, index + 1).tolist()
        if len(used) == 1 and used == decided:  # nearest neighbour across the slices repeats planes
            box[index] = box[index - 1]
            continue
        window.advance(int(plan.maps[0].needed_from[index]), used[-1])
        box[index] = arrays.to_host(
            decide(on_gpu.resampled(window, index, used), colours, labels.decision, xp=arrays.xp)
        )
        decided = used
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
