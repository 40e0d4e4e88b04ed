"""The pictures in an overlay: which slices are shown, and one slice painted with its labels."""

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
"""Hounsfield units that divide air and lung from fat and all else."""
_CT_WINDOW = (-160.0, 240.0)
"""Hounsfield units in which radiologists look at soft tissue; bone and metal, on many slices, would widen it."""
_FILL = 0.25
"""How much of a label's colour covers the scan inside its contour."""


def count_labels(labels_zyx: Array, slice_axis: int) -> tuple[Indices, Counts]:
    """Count each label on each slice, in memory of a few planes.

    Args:
        labels_zyx: `[Z, Y, X]` integers from 0 to 65535.
        slice_axis: the array axis that slices lie across.

    Returns:
        The values that occur besides 0, ascending, `[V]`, and their voxels per slice, `[slices, V]`.

    Raises:
        ValueError: the labels are no such integers.
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
    """Slices that show the labels: evenly among those that have any, then some for labels missed so far.

    Args:
        counts: voxels per slice and label, `[slices, V]`.

    Returns:
        Indices, ascending, without repetition; evenly over the volume if there is no label at all.
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
        # The sheet is larger then anyway; what the missed labels leave free is spread as well.
        chosen = _spread(np.setdiff1d(candidates, sorted(extra)), _MOST_SLICES - len(extra))
    return sorted(chosen | extra)


def _spread(candidates: Indices, most: int) -> set[int]:
    number = min(most, candidates.size)
    return {int(candidates[(2 * i + 1) * candidates.size // (2 * number)]) for i in range(number)}


def grey_window(planes: Sequence[Array]) -> Window:
    """Intensities to show as black and white: soft tissue in CT, otherwise the shown slices' 1st and 99th percentile.

    Voxels at the very minimum, which is what air and padding are often filled with, do not count.
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
    """A slice as 8-bit grey."""
    low, high = window
    scaled = np.nan_to_num((np.asarray(plane, np.float64) - low) * (255.0 / (high - low)), nan=0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def resized(codes: Indices, shape: tuple[int, int]) -> Indices:
    """Nearest neighbours on another grid over the same area: labels keep their codes."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(shape, codes.shape, strict=True))
    result: Indices = codes[rows[:, None], columns[None, :]]
    return result


def painted(grey: Pixels, codes: Indices, colours: Pixels, thickness: int) -> Pixels:
    """A grey slice with labels as contours and a light fill.

    Args:
        grey: `[H, W]`.
        codes: `[H, W]`, 0 for background, otherwise a row of `colours`.
        colours: RGB `[N, 3]`; row 0 is unused.
        thickness: of the contours in pixels, inside the label.

    Returns:
        RGB `[H, W, 3]`.
    """
    rgb = np.repeat(grey[..., None], 3, axis=2).astype(np.float64)
    labelled = codes > 0
    rgb[labelled] = (1 - _FILL) * rgb[labelled] + _FILL * colours[codes[labelled]]
    edge = _differs(codes) & labelled
    for _ in range(thickness - 1):
        # What borders the contour inside the same label: where peeling the contour off makes a new edge.
        edge |= _differs(np.where(edge, -1, codes)) & labelled
    rgb[edge] = colours[codes[edge]]
    return np.rint(rgb).astype(np.uint8)


def _differs(codes: Indices) -> Mask:
    """Whether a pixel has one of its four neighbours in another label; the image's border is no neighbour."""
    result = np.zeros(codes.shape, bool)
    down, right = codes[1:] != codes[:-1], codes[:, 1:] != codes[:, :-1]
    result[1:] |= down
    result[:-1] |= down
    result[:, 1:] |= right
    result[:, :-1] |= right
    return result
