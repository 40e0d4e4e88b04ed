"""The tiles of an overlay: choosing slices, and drawing one slice with its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.volume import Array

Indices: TypeAlias = NDArray[np.intp]
Counts: TypeAlias = NDArray[np.int64]
Pixels: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]
Window: TypeAlias = tuple[float, float]

_SPREAD_SLICES = 12
_MOST_SLICES = 16
_CT_AIR = -250.0
"""Hounsfield units between air and lung on one side and all other tissue on the other."""
_CT_WINDOW = (-160.0, 240.0)
"""Soft-tissue window in Hounsfield units; percentiles would be widened by bone and metal."""
_FILL = 0.25
"""Opacity of a label's colour inside its contour."""


def count_labels(labels_zyx: Array, slice_axis: int) -> tuple[Indices, Counts]:
    """Count each label on each slice, using the memory of a few planes.

    Args:
        labels_zyx: `[Z, Y, X]` integers from 0 to 65535.
        slice_axis: the array axis that slices lie across.

    Returns:
        The values that occur besides 0, ascending, `[V]`; and their voxels per slice, `[slices, V]`.

    Raises:
        ValueError: the labels are not integers from 0 to 65535.
    """
    if labels_zyx.dtype.kind not in "iu" or int(labels_zyx.min()) < 0 or int(labels_zyx.max()) > 65535:
        raise ValueError(f"labels are {labels_zyx.dtype}, expected integers from 0 to 65535")
    occurs = np.zeros(65536, bool)
    for plane in labels_zyx:
        occurs[plane] = True
    occurs[0] = True
    values = np.flatnonzero(occurs)
    code_of = np.zeros(65536, np.intp)
    code_of[values] = np.arange(values.size)
    counts = np.zeros((labels_zyx.shape[slice_axis], values.size), np.int64)
    for z, plane in enumerate(labels_zyx):
        if not plane.any():
            continue
        if slice_axis == 0:
            counts[z] = np.bincount(code_of[plane].ravel(), minlength=values.size)
        else:
            lines = np.expand_dims(np.arange(plane.shape[slice_axis - 1]), 2 - slice_axis)
            codes = lines * values.size + code_of[plane]
            counts += np.bincount(codes.ravel(), minlength=counts.size).reshape(counts.shape)
    return values[1:], counts[:, 1:]


def choose_slices(counts: Counts) -> list[int]:
    """Choose slices that show the labels: evenly among those with labels, then more for labels missed so far.

    Args:
        counts: voxels per slice and label, `[slices, V]`.

    Returns:
        Indices, ascending, without repetition; spread evenly over the volume if there are no labels.
    """
    candidates = np.flatnonzero(counts.any(axis=1)) if counts.any() else np.arange(counts.shape[0])
    chosen = _spread(candidates, _SPREAD_SLICES)
    extra: set[int] = set()
    while len(chosen | extra) < _MOST_SLICES:
        missed = ~counts[sorted(chosen | extra)].any(axis=0)
        gain = (counts[:, missed] > 0).sum(axis=1)
        if not gain.any():
            break
        # Of the slices that add most labels, the one with most voxels of them.
        voxels = np.where(gain == gain.max(), counts[:, missed].sum(axis=1), -1)
        extra.add(int(voxels.argmax()))
    if extra:
        # The sheet is larger then; its remaining places are filled evenly as well.
        chosen = _spread(np.setdiff1d(candidates, sorted(extra)), _MOST_SLICES - len(extra))
    return sorted(chosen | extra)


def _spread(candidates: Indices, most: int) -> set[int]:
    number = min(most, candidates.size)
    return {int(candidates[(2 * i + 1) * candidates.size // (2 * number)]) for i in range(number)}


def grey_window(planes: Sequence[Array]) -> Window:
    """Choose the intensities that are shown as black and as white.

    CT gets a soft-tissue window, other scans the 1st and 99th percentile of the drawn slices. Voxels at the minimum,
    which air and padding are often filled with, do not count.

    Args:
        planes: the drawn slices, `[rows, columns]` each.

    Returns:
        The intensities of black and of white.
    """
    samples = np.concatenate([np.asarray(plane[::2, ::2], np.float64).ravel() for plane in planes])
    samples = samples[np.isfinite(samples)]
    if not samples.size or samples.min() == samples.max():
        return (float(samples[0]) - 1.0, float(samples[0]) + 1.0) if samples.size else (0.0, 1.0)
    # Only Hounsfield units reach that far below zero.
    if samples.min() < _CT_AIR < samples.max():
        return _CT_WINDOW
    low, high = np.percentile(samples[samples > samples.min()], (1, 99))
    # Two values only, as in a mask: the upper one must not become black.
    return (float(low) if high > low else float(samples.min()), float(high))


def grey_pixels(plane: Array, window: Window) -> Pixels:
    """Convert a slice to 8-bit grey.

    Args:
        plane: `[rows, columns]`.
        window: the intensities of black and of white.

    Returns:
        uint8 `[rows, columns]`; NaN becomes black.
    """
    low, high = window
    scaled = np.nan_to_num((np.asarray(plane, np.float64) - low) * (255.0 / (high - low)), nan=0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def resized(codes: Indices, shape: tuple[int, int]) -> Indices:
    """Resample labels to another number of pixels over the same area, by nearest neighbours.

    Args:
        codes: `[rows, columns]`.
        shape: rows and columns of the result.
    """
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(shape, codes.shape, strict=True))
    result: Indices = codes[rows[:, None], columns[None, :]]
    return result


def painted(grey: Pixels, codes: Indices, colours: Pixels, thickness: int) -> Pixels:
    """Draw labels on a grey slice, as contours with a light fill.

    Args:
        grey: `[H, W]`.
        codes: `[H, W]`, 0 for background, otherwise a row of `colours`.
        colours: RGB `[N, 3]`; row 0 is unused.
        thickness: of the contours in pixels; they lie inside the label.

    Returns:
        RGB `[H, W, 3]`.
    """
    rgb = np.repeat(grey[..., None], 3, axis=2).astype(np.float64)
    labelled = codes > 0
    rgb[labelled] = (1 - _FILL) * rgb[labelled] + _FILL * colours[codes[labelled]]
    edge = _differs(codes) & labelled
    for _ in range(thickness - 1):
        # The next layer inside the label: the edge that appears where the contour so far is taken away.
        edge |= _differs(np.where(edge, -1, codes)) & labelled
    rgb[edge] = colours[codes[edge]]
    return np.rint(rgb).astype(np.uint8)


def _differs(codes: Indices) -> Mask:
    """Whether one of the four neighbours of a pixel has another label; outside the image there are no neighbours."""
    result = np.zeros(codes.shape, bool)
    down, right = codes[1:] != codes[:-1], codes[:, 1:] != codes[:, :-1]
    result[1:] |= down
    result[:-1] |= down
    result[:, 1:] |= right
    result[:, :-1] |= right
    return result
