"""A worst case in the figure of an evaluation: both contours on the slice where they differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.volume import Array, Geometry
from masksam_deploy.evaluation.figure import plain
from masksam_deploy.evaluation.metrics import ClassMetrics
from masksam_deploy.evaluation.pairing import Pair
from masksam_deploy.io import read_volume
from masksam_deploy.metrics.label_maps import read_label_map
from masksam_deploy.metrics.surfaces import Mask
from masksam_deploy.outputs.overlay_tiles import grey_pixels, grey_window
from masksam_deploy.outputs.patient_view import View, radiological_view

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.patheffects import AbstractPathEffect

# From the palette of Okabe and Ito: distinct for colour-blind readers, and bright on a dark scan.
_REFERENCE, _PREDICTION = "#56b4e9", "#e69f00"
_THICK, _THINNEST = 3.2, 1.2
"""Largest and smallest width of the reference's contour, in points."""
_THINNER = 0.45
"""Width of the prediction's contour relative to the reference's, which lies below it and stays visible beside it."""
_PANEL_POINTS = 210.0
"""Approximate width of a panel, in points."""
_MARGIN = 0.35
_LEAST_MARGIN_MM = 8.0
_TITLE = 44


def draw_panel(axes: Axes, pair: Pair, entry: ClassMetrics) -> None:
    """Draw one class of one case, in radiological orientation and in the true proportions of the patient.

    The panel shows both masks and their surroundings on one slice, with a scale. The background is the first channel of
    the scan in grey, or black if there is no scan.

    Args:
        axes: where to draw.
        pair: the files of the case.
        entry: the class to draw, with its figures.

    Raises:
        ScanError, EvaluationError: a file cannot be read.
    """
    reference, prediction = read_label_map(pair.reference), read_label_map(pair.prediction)
    view = radiological_view(reference.geometry)
    masks = (reference.array == entry.value, prediction.array == entry.value)
    index = slice_of_largest_disagreement(*masks, view.slice_axis)
    planes = [view.slice_of(mask, index).astype(bool) for mask in masks]
    spacing = reference.geometry.spacing_zyx
    steps = (spacing[view.row_axis], spacing[view.column_axis])
    if pair.scan:
        _draw_scan(axes, view.slice_of(read_volume(pair.scan).channels_czyx[0], index), steps)
    side = _frame(axes, planes[0] | planes[1], steps)
    # A contour wider than a voxel would hide what it surrounds.
    width = min(max(_PANEL_POINTS * min(steps) / side, _THINNEST), _THICK)
    _draw_outline(axes, planes[0], steps, _REFERENCE, width)
    _draw_outline(axes, planes[1], steps, _PREDICTION, width * _THINNER)
    _draw_sides(axes, view)
    _draw_scale(axes)
    axes.set_title(
        f"{plain(pair.case, _TITLE)}\n{plain(entry.name, _TITLE)}: {_verdict(entry)}",
        fontsize=10,
        parse_math=False,
    )
    axes.set_xlabel(_where(view, index, reference.geometry), fontsize=9, color="#707070")


def draw_legend(figure: FigureBase, title: str) -> None:
    """Draw the legend of the contours above the panels.

    Args:
        figure: that holds the panels.
        title: of the legend.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_REFERENCE, linewidth=_THICK, label="reference"),
        Line2D([], [], color=_PREDICTION, linewidth=_THICK * _THINNER, label="prediction"),
    ]
    legend = figure.legend(
        handles=handles, loc="outside upper left", ncols=2, title=title, frameon=False, alignment="left"
    )
    legend.get_title().set_fontsize(12)


def slice_of_largest_disagreement(reference: Mask, prediction: Mask, axis: int) -> int:
    """Choose the slice with most voxels that are in one mask only.

    If the masks are equal, the slice with most voxels of them is chosen; of several such slices, the middle one.

    Args:
        reference, prediction: `[Z, Y, X]`, not both empty.
        axis: array axis that slices lie across.

    Returns:
        Index of the slice.
    """
    others = tuple(other for other in range(3) if other != axis)
    differing = (reference ^ prediction).sum(axis=others)
    counts = differing if differing.any() else reference.sum(axis=others)
    equal = np.flatnonzero(counts == counts.max())
    return int(equal[len(equal) // 2])


def outline(mask: Mask) -> NDArray[np.float64]:
    """Find the edges between voxels inside and outside a mask.

    Voxels keep their corners, because smoothing would hide a disagreement of one voxel.

    Args:
        mask: `[rows, columns]`; outside the image counts as outside the mask.

    Returns:
        Segments `[N, 2 ends, (column, row)]` in voxels; (0, 0) is the outer corner of the first voxel.
    """
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([columns, rows], -1), np.stack([columns, rows + 1], -1)], axis=1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([np.stack([columns, rows], -1), np.stack([columns + 1, rows], -1)], axis=1)
    return np.concatenate([upright, level]).astype(np.float64)


def _draw_scan(axes: Axes, plane: Array, steps: tuple[float, float]) -> None:
    height, width = plane.shape[0] * steps[0], plane.shape[1] * steps[1]
    axes.imshow(
        grey_pixels(plane, grey_window([plane])),
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(0.0, width, height, 0.0),
        interpolation="bilinear",
    )


def _draw_outline(axes: Axes, mask: Mask, steps: tuple[float, float], colour: str, width: float) -> None:
    from matplotlib.collections import LineCollection

    segments = outline(mask) * np.array([steps[1], steps[0]])
    axes.add_collection(LineCollection(list(segments), colors=colour, linewidths=width, capstyle="round"))


def _frame(axes: Axes, mask: Mask, steps: tuple[float, float]) -> float:
    """Set the axes to a square around the mask; returns its side in mm."""
    ranges = []
    for step, occupied in zip(steps, (mask.any(axis=1), mask.any(axis=0)), strict=True):
        inside = np.flatnonzero(occupied)
        ranges.append((inside[0] * step, (inside[-1] + 1) * step))
    longest = max(high - low for low, high in ranges)
    half = longest / 2 + max(_MARGIN * longest, _LEAST_MARGIN_MM)
    row, column = ((low + high) / 2 for low, high in ranges)
    axes.set_xlim(column - half, column + half)
    axes.set_ylim(row + half, row - half)
    axes.set_aspect("equal")
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    return float(2 * half)


def _draw_sides(axes: Axes, view: View) -> None:
    sides = ((view.top, 0.5, 0.96), (view.bottom, 0.5, 0.04), (view.left, 0.04, 0.5), (view.right, 0.96, 0.5))
    for letter, x, y in sides:
        text = axes.text(x, y, letter, transform=axes.transAxes, color="white", ha="center", va="center", fontsize=10)
        text.set_path_effects(_dark_rim())


def _draw_scale(axes: Axes) -> None:
    """A bar of a round length, about a fifth of the width."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    wanted = (right - left) / 5
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= wanted)
    x, y = left + 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    (bar,) = axes.plot([x, x + length], [y, y], color="white", linewidth=2, solid_capstyle="butt")
    text = axes.text(x, y + 0.02 * (top - bottom), f"{length:g} mm", color="white", fontsize=8)
    for artist in (bar, text):
        artist.set_path_effects(_dark_rim())


def _dark_rim() -> list[AbstractPathEffect]:
    """White signs stay readable on a bright scan."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="black", alpha=0.7)]


def _verdict(entry: ClassMetrics) -> str:
    if entry.status != "both present" or entry.hd95_mm is None:
        return entry.status
    return f"Dice {entry.dice:.3f}, HD95 {entry.hd95_mm:.1f} mm"


def _where(view: View, index: int, geometry: Geometry) -> str:
    return f"{view.plane}, slice {index + 1} of {geometry.shape_zyx[view.slice_axis]}"
