"""The steps of a recipe that change intensities, as functions over float32 arrays `[D,H,W]` of one channel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.bundle.recipe import Channel, Clip, MinMax, Quantise, Scale, Step, Within, ZScore

Intensities: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

_SMALLEST_DIVISOR = 1e-8  # nnU-Net's guard against dividing by a standard deviation of zero
_TOO_LARGE = (
    "the scan has intensities too large to normalise in float32; expected a scan in its usual units, rescale it"
)


def apply_steps(steps: Sequence[Step], values: Intensities, out: Intensities, mask: Mask | None = None) -> None:
    """Apply steps in order, in float32.

    NumPy's float32 sums depend on the memory layout in their last bits. nnU-Net reduces the transposed and cropped view
    of a whole scan, so the first step sees `values` as they are given: a view must not be copied first.

    Args:
        steps: of a recipe; none copies.
        values: intensities `[D,H,W]`, finite; not modified, unless they are `out`.
        out: float32 `[D,H,W]`, written.
        mask: where the scan is not zero, holes filled, `[D,H,W]`; only read by a z-score with `inside_mask`.

    Raises:
        ScanError: intensities are outside of the range that a `Within` expects, or overflow.
    """
    current = values
    # A finite scan can overflow here (intensities near 1e38): reported below, not warned about.
    with np.errstate(over="ignore", invalid="ignore"):
        for voxelwise, group in groupby(steps, lambda step: isinstance(step, Clip | Scale | Quantise)):
            if voxelwise:
                _each_voxel(list(group), current, out)
                current = out
                continue
            for step in group:
                if isinstance(step, Within):
                    _check_range(step, current)
                    continue
                _whole(step, current, out, mask)
                current = out
    if current is not out:
        out[...] = current
    if not all_finite(out):
        raise ScanError(_TOO_LARGE)


def needs_mask(channel: Channel) -> bool:
    """Whether a step of a channel reads the mask of what is not zero."""
    return any(isinstance(step, ZScore) and step.inside_mask for step in channel.before)


def all_finite(array: Intensities) -> bool:
    """Whether all numbers are finite, without a temporary of the array's size (NaN wins min and max)."""
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _each_voxel(steps: Sequence[Step], values: Intensities, out: Intensities) -> None:
    """Steps that look at each voxel alone."""
    for plane, changed in zip(values, out, strict=True):  # a plane stays in the cache from step to step
        current = plane
        for step in steps:
            if isinstance(step, Clip):
                np.clip(current, step.lower, step.upper, out=changed)
            elif isinstance(step, Scale):
                np.subtract(current, step.subtract, out=changed)
                np.divide(changed, step.divide, out=changed)
            elif isinstance(step, Quantise):
                np.clip(current, 0, step.highest, out=changed)
                np.trunc(changed, out=changed)
            current = changed


def _whole(step: Step, values: Intensities, out: Intensities, mask: Mask | None) -> None:
    """Steps that measure before they change."""
    if isinstance(step, ZScore):
        _zscore(values, mask if step.inside_mask else None, out)
    elif isinstance(step, MinMax):
        if step.over == "slice":
            for plane, changed in zip(values, out, strict=True):
                _min_max(plane, step.guard, step.epsilon, changed)
        else:
            _min_max(values, step.guard, step.epsilon, out)
    else:
        raise TypeError(f"step '{step.kind}' looks at each voxel alone")


def _zscore(values: Intensities, mask: Mask | None, out: Intensities) -> None:
    """(v - mean) / max(std, 1e-8), population std; nothing where the mask is empty."""
    if mask is None:
        mean, divisor = _mean_and_divisor(values)
        np.subtract(values, mean, out=out)
        out /= divisor
        return
    out[...] = values
    if not mask.any():
        return
    inside = values[mask]
    mean, divisor = _mean_and_divisor(inside)
    del inside  # a copy of the scan, no longer needed
    np.subtract(out, mean, out=out, where=mask)
    np.divide(out, divisor, out=out, where=mask)


def _mean_and_divisor(values: Intensities) -> tuple[np.float32, np.float32]:
    mean, std = values.mean(), values.std()
    # Squares overflow above 1e19; dividing by an infinite std would quietly make everything 0.
    if not (np.isfinite(mean) and np.isfinite(std)):
        raise ScanError(_TOO_LARGE)
    return mean, np.maximum(std, np.float32(_SMALLEST_DIVISOR))


def _min_max(values: Intensities, guard: Literal["at-least", "added"], epsilon: float, out: Intensities) -> None:
    np.subtract(values, values.min(), out=out)
    extent, smallest = np.float32(out.max()), np.float32(epsilon)
    divisor = np.maximum(extent, smallest) if guard == "at-least" else extent + smallest
    if divisor > 0:
        out /= divisor


def _check_range(step: Within, values: Intensities) -> None:
    low, high = values.min(), values.max()
    if low < step.lower or high > step.upper:
        raise ScanError(
            f"intensities range from {low:g} to {high:g}, expected {step.lower:g}..{step.upper:g}; convert the scan"
        )
