"""The weighted sums of overlapping windows' class scores, formed in nnU-Net v2.5.1's order of operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.threads import Team
from masksam_deploy.scan_path.resample import Shape3

Scores: TypeAlias = NDArray[np.floating[Any]]

GAUSSIAN_PEAK = 10.0
_SIGMA_PER_PATCH = 1 / 8
_TRUNCATE_SIGMAS = 4.0
_FLOAT16_MAX = 65504.0

Weight: TypeAlias = Literal["gaussian", "uniform"]
BeforeSum: TypeAlias = Literal["none", "softmax", "sigmoid"]
Mirroring: TypeAlias = tuple[int, ...]
"""Axes, out of 0, 1, 2, along which a window was mirrored."""


class Sums(Protocol):
    """Weighted score sums of the planes that later windows may still reach, wherever they are kept."""

    def mean(self, images: Iterable[tuple[Mirroring, Any]], count: int, starts: Sequence[Shape3]) -> Any:
        """The mean of `count` predictions `[B,K,T,P,P]` of the same windows mirrored in different ways, turned back.

        Of one prediction it is that one's own memory, which `add` checks.

        Args:
            images: how each was mirrored, and what the network gave; not valid any more when the next is asked for.
            count: how many.
            starts: of the windows, for messages.

        Raises:
            BackendError: scores are not finite.
        """

    def add(self, prediction: Any, start: Shape3) -> None:
        """Add one window's `[K,T,P,P]`.

        Raises:
            BackendError: scores are not finite, or float16 sums overflow.
        """

    def average(self, plane: int, rows: slice, columns: slice) -> Any:
        """The weighted mean scores `[K,1,H,W]` of one kept plane, in the accumulator's dtype."""

    def forget(self, start: int, stop: int) -> None:
        """Make room in the slots of planes `start` to `stop`."""


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


def probabilities(scores: NDArray[np.float32], kind: Literal["softmax", "sigmoid"]) -> NDArray[np.float32]:
    """Finite scores `[K, ...]` as float32 probabilities: of one class among all, or of each class by itself."""
    if kind == "softmax":
        shares: NDArray[np.float32] = np.exp(scores - scores.max(axis=0))
        shares /= shares.sum(axis=0)
        return shares
    with np.errstate(over="ignore"):  # exp of a very negative score is infinite, its sigmoid 0: as wanted
        return np.asarray(1 / (1 + np.exp(-scores)), np.float32)


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


class RollingSums:
    """See `Sums`: in the host's memory, with plane z in slot `z % T`.

    Args:
        classes: K.
        patch: (T, P, P).
        plane: height and width of the padded network grid.
        half: round sums to float16 after every window.
        team: shares out the work.
        weight: of a window's voxels.
        before_sum: what is done to every prediction before any are averaged, those of mirrored windows included.
    """

    def __init__(
        self,
        classes: int,
        patch: Shape3,
        plane: tuple[int, int],
        half: bool,
        team: Team,
        weight: Weight = "gaussian",
        before_sum: BeforeSum = "none",
    ) -> None:
        self._patch = patch
        self._half = half
        self._team = team
        self._before_sum = before_sum
        weights = gaussian_weights(patch) if weight == "gaussian" else np.ones(patch, np.float16)
        self._weights = weights.astype(np.float32)
        self._scores = np.zeros((classes, patch[0], *plane), np.float32)
        self._totals = np.zeros((patch[0], *plane), np.float32)

    def mean(
        self, images: Iterable[tuple[Mirroring, NDArray[np.float32]]], count: int, starts: Sequence[Shape3]
    ) -> NDArray[np.float32]:
        """See `Sums`; summed in float32 in the order given, as nnU-Net does."""
        total: NDArray[np.float32] | None = None
        for mirroring, given in images:
            scores = self._as_averaged(np.asarray(given, np.float32), mirroring, starts)
            if count == 1:
                return scores
            total = np.zeros_like(scores) if total is None else total
            self._add_turned_back(scores, mirroring, total, starts)
        assert total is not None
        total /= count
        return total

    def _as_averaged(
        self, scores: NDArray[np.float32], mirroring: Mirroring, starts: Sequence[Shape3]
    ) -> NDArray[np.float32]:
        kind = self._before_sum
        if kind == "none":
            return scores
        converted = np.empty_like(scores)

        def convert_plane(index: tuple[int, int]) -> None:
            window, plane = index
            found = scores[window, :, plane]
            # Here, because probabilities of infinite scores may look sound.
            if not np.isfinite(found).all():
                raise not_finite(starts[window], mirroring)
            converted[window, :, plane] = probabilities(found, kind)

        self._team.each(convert_plane, np.ndindex(scores.shape[0], scores.shape[2]))
        return converted

    def _add_turned_back(
        self, scores: NDArray[np.float32], mirroring: Mirroring, total: NDArray[np.float32], starts: Sequence[Shape3]
    ) -> None:
        def add_class(index: tuple[int, int]) -> None:
            if not np.isfinite(scores[index]).all():
                raise not_finite(starts[index[0]], mirroring)
            total[index] += np.flip(scores[index], mirroring)

        self._team.each(add_class, np.ndindex(*scores.shape[:2]))

    def add(self, prediction: NDArray[np.float32], start: Shape3) -> None:
        """See `Sums`.

        float16 mode rounds after every window as nnU-Net's float16 sums do: the product and the sum are
        float32, the result is float16. Without it the sums are plain float32.
        """

        def add_class(index: int) -> None:
            self._add(self._scores[index], prediction[index], start)

        self._team.each(add_class, range(len(self._scores)))
        self._add(self._totals, np.broadcast_to(np.float32(1), self._patch), start)

    def _add(self, sums: NDArray[np.float32], scores: NDArray[np.float32], start: Shape3) -> None:
        """Add one class, plane by plane: what is in between stays in the cache."""
        z, y, x = start
        weighted = np.empty(self._patch[1:], np.float32)
        for offset in range(self._patch[0]):
            if not np.isfinite(scores[offset]).all():
                raise not_finite(start)
            kept = sums[(z + offset) % self._patch[0], y : y + self._patch[1], x : x + self._patch[2]]
            np.multiply(scores[offset], self._weights[offset], out=weighted)
            if self._half:
                weighted += kept
                _round_sums(weighted)
                kept[...] = weighted
            else:
                kept += weighted

    def average(self, plane: int, rows: slice, columns: slice) -> Scores:
        """See `Sums`."""
        keep = (slice(plane % self._patch[0], plane % self._patch[0] + 1), rows, columns)
        totals = self._totals[keep]
        means = np.empty((len(self._scores), *totals.shape), np.float16 if self._half else np.float32)

        def average_class(index: int) -> None:
            at = (index, *keep)
            np.divide(self._scores[at], totals, out=means[index], casting="same_kind")

        self._team.each(average_class, range(len(means)))
        return means

    def forget(self, start: int, stop: int) -> None:
        """See `Sums`."""
        slots = [plane % self._patch[0] for plane in range(start, stop)]

        def clear(sums: NDArray[np.float32]) -> None:
            for slot in slots:
                sums[slot] = 0

        self._team.each(clear, [*self._scores, self._totals])


def _round_sums(sums: NDArray[np.float32]) -> None:
    round_to_float16(sums)
    largest = max(sums.max(), -sums.min())
    if largest > _FLOAT16_MAX:
        raise BackendError(
            f"a weighted sum of class scores reached {largest:g}, expected at most 65504 (float16); "
            "use the float32 accumulator"
        )


def not_finite(start: Shape3, mirrored: Mirroring = ()) -> BackendError:
    """What to raise when a window's scores, or those of its mirror image, hold NaN or infinity."""
    how = f" mirrored along axes {mirrored}" if mirrored else ""
    return BackendError(
        f"the network returned scores that are not finite for the window at {start}{how}, "
        "expected finite numbers; use a wider precision (float32)"
    )
