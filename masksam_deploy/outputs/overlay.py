"""A contact sheet of a scan with its labels, for checking a segmentation at a glance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.optional import OptionalPackage
from masksam_deploy.base.text import one_line
from masksam_deploy.base.volume import Array, Geometry, Volume
from masksam_deploy.outputs.overlay_legend import FAINT, TEXT, Entry, Legend, fitting, font
from masksam_deploy.outputs.overlay_tiles import (
    Counts,
    Indices,
    Pixels,
    Window,
    choose_slices,
    count_labels,
    grey_pixels,
    grey_window,
    painted,
    resized,
)
from masksam_deploy.outputs.patient_view import View, radiological_view

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_TILE = (320, 440)
"""Least and greatest length of a tile's longer side in pixels; between them, a voxel is a pixel."""
_LEAST_WIDTH = 960
_LEAST_CELL = 150
_GUTTER = 30
_MARGIN = 20
_TITLE, _SMALL, _LINE = 24, 17, 22
_ASPECT = 1.4
"""Ratio of width to height that the tiles together approximate."""
_BACKGROUND = (16, 16, 16)

# The colours of Okabe and Ito (without black, the blue lightened for dark images). Each further colour is the one that
# is farthest in CIELAB from all before it, for normal and for red- or green-blind sight (Machado 2009).
PALETTE: Pixels = np.frombuffer(
    bytes.fromhex(
        "e69f0056b4e9f0e442009e73cc79a7d55e003377ff00ff77ffcc99ee00ccee22554477008811ff00ffff77ff007755aa995544aaffaaff0099ff99ff00777766bb0000ffccbbbb55eeccffff9999bb55ffff1133aa773333bb55ff88662288dd778855ccff77bb336677ccbb0055ffddff00aa33887777aa33bbcc007733ffaa55aa88ff99cc999933bbbb4422aaaaffff55ccee00ffaa8811007799ff007700dd3300cc88ffee99bbbb7700ff99ff3300aaaa00aa6677bbffdd00990099ff55"
    ),
    np.uint8,
).reshape(-1, 3)
"""RGB `[64, 3]` for the label values in ascending order; repeats after the last."""


_PILLOW = OptionalPackage("PIL.Image", "pillow", "cpu", "drawing an overlay", "Pillow")


def require_pillow() -> None:
    """Check before long work that an overlay can be drawn.

    Raises:
        MissingDependencyError: Pillow is not installed.
        BackendError: Pillow is installed but cannot be imported.
    """
    _PILLOW.load()


def draw_overlay(scan: Volume, labels: Volume, names: Mapping[int, str], path: str | Path, *, title: str = "") -> None:
    """Draw slices of a scan with the contours of its labels and a legend into a PNG file.

    Slices lie across the coarsest axis, in radiological orientation (`patient_view.py`). They are spread evenly over
    the slices that have labels; labels that these miss get slices of their own. Only the drawn slices are read from the
    scan. The same input gives the same picture.

    Args:
        scan: `[C, Z, Y, X]` or `[Z, Y, X]`; the first channel is drawn.
        labels: `[Z, Y, X]` of integers from 0 to 65535 on the same grid; 0 is background.
        names: label value -> name; all but 0 are listed, also those that do not occur.
        path: the file to write; an existing one is replaced.
        title: first line, such as the names of the scan and the model; cut to the width of the picture.

    Raises:
        ScanError: the grids differ.
        OutputError: the file cannot be written.
        MissingDependencyError: Pillow is not installed.
    """
    require_pillow()
    _check_grids(scan.geometry, labels.geometry)
    view = radiological_view(labels.geometry)
    values, counts = count_labels(labels.array, view.slice_axis)
    chosen = choose_slices(counts)
    entries = _entries(values, counts, chosen, names, labels.geometry.voxel_volume_ml)
    scan_planes = [view.slice_of(scan.channels_czyx[0], index) for index in chosen]
    window = grey_window(scan_planes)
    shape = _tile_shape(scan_planes[0].shape, view, labels.geometry)
    listed = [entry.value for entry in entries]
    tiles = [
        _tile(plane, view.slice_of(labels.array, index), listed, shape, window)
        for index, plane in zip(chosen, scan_planes, strict=True)
    ]
    captions = [f"slice {index + 1}" for index in chosen]
    sheet = _sheet(tiles, captions, view, entries, _head(title, labels.geometry, view, window))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _check_grids(scan: Geometry, labels: Geometry) -> None:
    def numbers(geometry: Geometry) -> list[float]:
        return [*geometry.spacing_xyz, *geometry.origin_lps, *geometry.direction_lps]

    if scan.size_xyz != labels.size_xyz or not np.allclose(numbers(scan), numbers(labels), atol=1e-3):
        raise ScanError(
            f"found labels on a grid of {labels.size_xyz} voxels at {labels.origin_lps}, expected the scan's grid "
            f"of {scan.size_xyz} at {scan.origin_lps}; draw labels only on the scan that they were made from"
        )


def _entries(
    values: Indices, counts: Counts, chosen: Sequence[int], names: Mapping[int, str], voxel_ml: float
) -> list[Entry]:
    voxels: dict[int, int] = dict(zip(values.tolist(), counts.sum(axis=0).tolist(), strict=True))
    shown = set(values[counts[chosen].any(axis=0)].tolist())
    entries = []
    for index, value in enumerate(sorted({*names, *voxels} - {0})):
        red, green, blue = PALETTE[index % len(PALETTE)].tolist()
        volume = voxels[value] * voxel_ml if value in voxels else None
        entries.append(Entry(value, names.get(value, "no name"), (red, green, blue), volume, value in shown))
    return entries


def _tile_shape(plane_shape: tuple[int, ...], view: View, geometry: Geometry) -> tuple[int, int]:
    """Pixels `(H, W)` of a tile, in the true proportions of the patient."""
    spacing = geometry.spacing_zyx
    lengths = (plane_shape[0] * spacing[view.row_axis], plane_shape[1] * spacing[view.column_axis])
    scale = min(max(*plane_shape, _TILE[0]), _TILE[1]) / max(lengths)
    return (max(1, round(lengths[0] * scale)), max(1, round(lengths[1] * scale)))


def _tile(scan: Array, labels: Array, listed: Sequence[int], shape: tuple[int, int], window: Window) -> Pixels:
    from PIL.Image import Resampling, fromarray

    grey = fromarray(grey_pixels(scan, window)).resize((shape[1], shape[0]), Resampling.BICUBIC)
    codes = np.searchsorted([0, *listed], labels)
    colours = PALETTE[np.arange(-1, len(listed)) % len(PALETTE)]
    return painted(np.asarray(grey, np.uint8), resized(codes, shape), colours, thickness=2)


def _head(title: str, geometry: Geometry, view: View, window: Window) -> list[str]:
    size = " x ".join(str(number) for number in geometry.size_xyz)
    spacing = " x ".join(f"{number:.2f}" for number in geometry.spacing_xyz)
    slices = geometry.shape_zyx[view.slice_axis]
    lines = [
        one_line(title, limit=1000),
        f"{size} voxels of {spacing} mm",
        f"{view.plane} slices, numbered 1 to {slices} from the first in space; "
        f"black to white is {window[0]:.4g} to {window[1]:.4g}",
    ]
    return [line for line in lines if line]


def _sheet(
    tiles: Sequence[Pixels],
    captions: Sequence[str],
    view: View,
    entries: Sequence[Entry],
    head: Sequence[str],
) -> Image:
    from PIL import Image, ImageDraw

    height, width = tiles[0].shape[:2]
    cell_width, cell_height = max(width, _LEAST_CELL) + 2 * _GUTTER, height + 2 * _GUTTER + _LINE
    columns = _columns(len(tiles), cell_width, cell_height)
    rows = math.ceil(len(tiles) / columns)
    inner_width = max(columns * cell_width, _LEAST_WIDTH)
    legend = Legend(entries, inner_width)
    tiles_top = _MARGIN + 2 * _TITLE + _SMALL + (len(head) - 2) * _LINE
    legend_top = tiles_top + rows * cell_height + _MARGIN
    sheet = Image.new("RGB", (inner_width + 2 * _MARGIN, legend_top + legend.height + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), fitting(head[0], _TITLE, inner_width), TEXT, font(_TITLE))
    for number, line in enumerate(head[1:]):
        y = _MARGIN + _TITLE + 8 + number * _LINE
        draw.text((_MARGIN, y), fitting(line, _SMALL, inner_width), FAINT, font(_SMALL))
    left = _MARGIN + (inner_width - columns * cell_width) // 2 + (cell_width - width) // 2
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x, y = left + number % columns * cell_width, tiles_top + number // columns * cell_height + _GUTTER + _LINE
        sheet.paste(Image.fromarray(tile), (x, y))
        _draw_sides(draw, view, caption, (x, y, x + width, y + height))
    legend.draw(draw, _MARGIN, legend_top)
    return sheet


def _columns(tiles: int, cell_width: int, cell_height: int) -> int:
    def cost(columns: int) -> float:
        rows = math.ceil(tiles / columns)
        empty = (rows * columns - tiles) / tiles
        return empty + abs(math.log(columns * cell_width / (rows * cell_height) / _ASPECT))

    return min(range(1, tiles + 1), key=cost)


def _draw_sides(draw: ImageDraw, view: View, caption: str, box: tuple[int, int, int, int]) -> None:
    """Draw the sides of the patient beside the tile, where they hide no contour."""
    left, top, right, bottom = box
    middle_x, middle_y, gap = (left + right) // 2, (top + bottom) // 2, 5
    draw.text((middle_x, top - gap - _LINE), caption, FAINT, font(_SMALL), anchor="ms")
    draw.text((middle_x, top - gap), view.top, TEXT, font(_SMALL), anchor="ms")
    draw.text((middle_x, bottom + gap), view.bottom, TEXT, font(_SMALL), anchor="ma")
    draw.text((left - gap, middle_y), view.left, TEXT, font(_SMALL), anchor="rm")
    draw.text((right + gap, middle_y), view.right, TEXT, font(_SMALL), anchor="lm")
