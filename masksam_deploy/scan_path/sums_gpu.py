"""The weighted sums of overlapping windows' class scores, on the GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from masksam_deploy.scan_path.gpu_arrays import Arrays
from masksam_deploy.scan_path.resample import Shape3
from masksam_deploy.scan_path.sums_host import Mirroring, gaussian_weights, not_finite


class GpuSums:
    """See `sums_host.Sums`: the same float32 operations in the same order as `RollingSums`, so the same bits.

    Predictions are whatever the library's `asarray` takes without a copy. They are read before the method returns, so
    that their memory may be written again.
    """

    def __init__(self, arrays: Arrays, classes: int, patch: Shape3, plane: tuple[int, int]) -> None:
        xp = arrays.xp
        self._arrays = arrays
        self._patch = patch
        self._weights = xp.asarray(gaussian_weights(patch).astype(np.float32))
        self._scores = xp.zeros((classes, patch[0], *plane), np.float32)
        self._totals = xp.zeros((patch[0], *plane), np.float32)

    def mean(self, images: Iterable[tuple[Mirroring, Any]], count: int, starts: Sequence[Shape3]) -> Any:
        """See `sums_host.Sums`."""
        xp = self._arrays.xp
        total: Any = None
        for mirroring, given in images:
            scores = xp.asarray(given, np.float32)
            if count == 1:
                return scores
            for start, window in zip(starts, scores, strict=True):
                self._check(window, start, mirroring)
            total = xp.zeros_like(scores) if total is None else total
            total += xp.flip(scores, tuple(axis + 2 for axis in mirroring))
            self._arrays.finish()
        total /= np.float32(count)
        return total

    def add(self, prediction: Any, start: Shape3) -> None:
        """See `sums_host.Sums`."""
        self._check(prediction, start)
        z, y, x = start
        rows, columns = slice(y, y + self._patch[1]), slice(x, x + self._patch[2])
        for offset in range(self._patch[0]):
            slot = (z + offset) % self._patch[0]
            # Two operations, not one that rounds once: the host's sums are the same to the bit.
            weighted = prediction[:, offset] * self._weights[offset]
            self._scores[:, slot, rows, columns] += weighted
            self._totals[slot, rows, columns] += self._weights[offset]
        self._arrays.finish()

    def average(self, plane: int, rows: slice, columns: slice) -> Any:
        """See `sums_host.Sums`; an array of the library."""
        slot = slice(plane % self._patch[0], plane % self._patch[0] + 1)
        return self._scores[:, slot, rows, columns] / self._totals[slot, rows, columns]

    def forget(self, start: int, stop: int) -> None:
        """See `sums_host.Sums`."""
        for plane in range(start, stop):
            self._scores[:, plane % self._patch[0]] = 0
            self._totals[plane % self._patch[0]] = 0

    def _check(self, scores: Any, start: Shape3, mirroring: Mirroring = ()) -> None:
        if not bool(self._arrays.xp.isfinite(scores).all()):
            raise not_finite(start, mirroring)


def bytes_of_sums(classes: int, patch: Shape3, plane: tuple[int, int], batch: int, mirrored: bool) -> int:
    """GPU memory that `GpuSums` holds at its widest.

    Args:
        classes: K.
        patch: (T, P, P).
        plane: height and width of the padded network grid.
        batch: windows at once.
        mirrored: whether predictions of mirrored windows are averaged.
    """
    kept = 4 * (classes + 1) * patch[0] * prod(plane)
    window = classes * prod(patch)
    # The mean of mirrored windows; which numbers are finite; one plane of a window, weighted; the weights.
    means = 2 * 4 * batch * window if mirrored else 0
    return kept + means + window + 2 * 4 * classes * prod(patch[1:]) + 4 * prod(patch)
