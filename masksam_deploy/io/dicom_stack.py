"""From the positions of DICOM slices to one grid, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io.grid import check_spacing, times

# Two slices always look evenly spaced, so nothing could tell that one between them is missing.
MIN_SLICES = 3
# Direction cosines are decimal strings; real series differ by up to 1e-6, a real tilt by far more.
_ORIENTATION_TOLERANCE = 1e-3
_SPACING_RELATIVE = 1e-4
# Steps in units of the median step.
_MISSING_STEP = 1.5
_DOUBLE_STEP = 0.01
_UNEVEN = 0.1
# How closely steps must agree with a multiple of what the files state, as headers round.
_STATED_RELATIVE = 0.05
# Some vendors state the gap between slices instead of the distance of their centres; it is less than this share
# of the thickness unless slices lie about as far apart as they are thick.
_STATED_THICKNESS = 0.9
# Sideways drift in units of the pixel spacing: below half a pixel, straightening the stack moves no label.
_DRIFT_PIXELS = 0.5


@dataclass(frozen=True)
class Slice:
    """Where one image lies, in LPS mm.

    Attributes:
        path: its file.
        size_xy, spacing_xy: of its pixels.
        position: of the first pixel.
        row, column: unit vectors along growing x and growing y.
        thickness, between: SliceThickness and SpacingBetweenSlices, None where not stated.
    """

    path: Path
    size_xy: tuple[int, int]
    spacing_xy: tuple[float, float]
    position: tuple[float, ...]
    row: tuple[float, ...]
    column: tuple[float, ...]
    thickness: float | None = None
    between: float | None = None


def stack(slices: Sequence[Slice], name: str) -> tuple[list[Slice], Geometry]:
    """Sort slices along their normal (DICOM PS3.3 C.7.6.2.1.1) and give the grid they form.

    Raises:
        ScanError: they do not form one regular grid.
    """
    if len(slices) < MIN_SLICES:
        raise ScanError(
            f"{name}: found {len(slices)} DICOM slices, expected at least {MIN_SLICES}; give the folder of the whole "
            "series"
        )
    _check_same_planes(slices)
    # Which of several roundings of the orientation is used must not depend on file names.
    first = min(slices, key=lambda s: (s.row, s.column))
    axes = _axes(first)
    heights = np.array([s.position for s in slices]) @ axes[:, 2]
    order = np.argsort(heights, kind="stable")
    ordered = [slices[i] for i in order]
    _check_steps(ordered, heights[order], name)
    _check_no_drift(ordered, axes)
    step = float(heights[order[-1]] - heights[order[0]]) / (len(slices) - 1)
    _check_stated(ordered, step, name)
    x, y, z = ordered[0].position
    geometry = Geometry(
        size_xyz=(*first.size_xy, len(slices)),
        spacing_xyz=(*first.spacing_xy, step),
        origin_lps=(x, y, z),
        direction_lps=tuple(float(v) for v in axes.ravel()),
    )
    return ordered, geometry


def _check_same_planes(slices: Sequence[Slice]) -> None:
    first = slices[0]
    check_spacing((*first.spacing_xy, 1.0), shown(first.path))
    for other in slices[1:]:
        pair = f"{shown(other.path)}: found a slice"
        if other.size_xy != first.size_xy:
            raise ScanError(
                f"{pair} of {times(other.size_xy)} pixels, expected {times(first.size_xy)} as in {first.path.name}; "
                "keep one series in the folder"
            )
        if not np.allclose(other.spacing_xy, first.spacing_xy, rtol=_SPACING_RELATIVE, atol=0):
            raise ScanError(
                f"{pair} with pixels of {times(other.spacing_xy)} mm, expected {times(first.spacing_xy)} mm as in "
                f"{first.path.name}; keep one series in the folder"
            )
        turned = np.abs(np.subtract(other.row + other.column, first.row + first.column)).max()
        if turned > _ORIENTATION_TOLERANCE:
            raise ScanError(
                f"{pair} of another orientation than {first.path.name} (direction cosines differ by {turned:.2g}), "
                "expected parallel slices; keep one series in the folder"
            )


def _axes(first: Slice) -> NDArray[np.float64]:
    """The 3x3 matrix of unit vectors along x, y and the normal, free of the rounding in the file."""
    row, column = np.array(first.row), np.array(first.column)
    skew = max(abs(float(row @ row) - 1), abs(float(column @ column) - 1), abs(float(row @ column)))
    if skew > _ORIENTATION_TOLERANCE:
        raise ScanError(
            f"{shown(first.path)}: found row and column directions that are not orthogonal unit vectors (by "
            f"{skew:.2g}), expected them to be; give the original series"
        )
    x = row / np.linalg.norm(row)
    y = column - (column @ x) * x
    y /= np.linalg.norm(y)
    return np.column_stack([x, y, np.cross(x, y)])


def _check_steps(ordered: Sequence[Slice], heights: NDArray[np.float64], name: str) -> None:
    steps = np.diff(heights)
    mean = float(steps.mean())
    doubles = np.flatnonzero(steps <= _DOUBLE_STEP * steps.max())
    if doubles.size:
        i = int(doubles[0])
        raise ScanError(
            f"{name}: found {_two(ordered, i)} at the same position, {doubles.size} of {len(ordered)} files doubling a "
            "position, expected one slice per position; keep one phase, echo or copy"
        )
    median = float(np.median(steps))
    i = int(steps.argmax())
    if steps[i] > _MISSING_STEP * median:
        raise ScanError(
            f"{name}: found a gap of {steps[i]:.4g} mm between {_two(ordered, i)} at {heights[i]:.5g} and "
            f"{heights[i + 1]:.5g} mm, expected steps of {median:.4g} mm; slices are missing, export the series again"
        )
    off = np.abs(heights - (heights[0] + mean * np.arange(len(heights))))
    i = int(off.argmax())
    if off[i] > _UNEVEN * mean:
        raise ScanError(
            f"{name}: found uneven slices ({ordered[i].path.name} lies {off[i]:.3g} mm off a regular grid of "
            f"{mean:.4g} mm), expected even steps; resample the series"
        )


def _check_stated(slices: Sequence[Slice], step: float, name: str) -> None:
    """Refuse an even stack that lacks every second slice, or more, by what the files state."""
    between = [s.between for s in slices if s.between is not None]
    thickness = [s.thickness for s in slices if s.thickness is not None]
    if len(between) < len(slices) or len(thickness) < len(slices):
        return
    stated = between[0]
    if not np.allclose(between, stated, rtol=_SPACING_RELATIVE, atol=0) or stated < _STATED_THICKNESS * max(thickness):
        return
    multiple = round(step / stated)
    if multiple >= 2 and abs(step - multiple * stated) <= _STATED_RELATIVE * multiple * stated:
        raise ScanError(
            f"{name}: found steps of {step:.4g} mm, the files state {stated:.4g} mm between slices: slices are "
            "missing; export the series again"
        )


def _check_no_drift(ordered: Sequence[Slice], axes: NDArray[np.float64]) -> None:
    first, last = ordered[0], ordered[-1]
    offsets = np.array([s.position for s in ordered]) - np.array(first.position)
    sideways = np.linalg.norm(offsets @ axes[:, :2], axis=1)
    i = int(sideways.argmax())
    if sideways[i] > _DRIFT_PIXELS * min(first.spacing_xy):
        raise ScanError(
            f"{shown(ordered[i].path)}: found a slice {sideways[i]:.3g} mm sideways of {first.path.name} (the stack "
            f"runs to {last.path.name}), expected slices stacked at right angles; correct the gantry tilt by resampling"
        )


def _two(ordered: Sequence[Slice], i: int) -> str:
    return f"{shown(ordered[i].path.name)} and {shown(ordered[i + 1].path.name)}"
