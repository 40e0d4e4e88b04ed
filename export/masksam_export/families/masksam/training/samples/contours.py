"""Hand-drawn contours of the sample data: reading them, painting them on pixels, finding the wrong ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.io.grid import times
from masksam_export.families.masksam.training.samples.files import read_text, visible_files

Mask = NDArray[np.bool_]

# The coordinates are no indices from 0. Moving the 96 real i-contours over their images, the edge from bright cavity
# to dark muscle is steepest 0.75 pixels up and left of the written numbers (median over contours, both axes; means
# 0.82 and 0.88, standard error 0.08; neighbouring bright blood may bias this by up to half a pixel). All numbers are
# multiples of a half, one such step after the other: outlines traced on a twofold enlarged picture and counted from
# 1, as MATLAB does. Sample k of it, written k/2, has its centre at k/2 - 0.75 where the first pixel's centre is 0.
_FIRST_PIXEL = 0.75
_NAME = re.compile(r"IM-[0-9]{1,9}-(?P<number>[0-9]{1,9})-(?P<kind>[io])contour-manual\.txt")
_POINT = re.compile(r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)[ \t]+(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)")
# Two hands, two outlines: the cavity may touch the outer border by a pixel here and there, not lie elsewhere.
_ENCLOSED = 0.95


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed polygon on one image.

    Attributes:
        path: its file.
        number: of the image.
        points_xy: `[N, 2]` in pixels; the centre of the first pixel is (0, 0).
    """

    path: Path
    number: int
    points_xy: NDArray[np.float64]


def read_contours(folder: Path, kind: str) -> dict[int, Contour]:
    """The contours of one `kind` (`i`, endocardium, or `o`, epicardium) of a patient, by image number.

    Raises:
        DatasetError: the folder is missing, a name is unknown, a number comes twice, or a file is no polygon.
    """
    contours: dict[int, Contour] = {}
    for path in visible_files(folder):
        match = _NAME.fullmatch(path.name)
        if not match or match["kind"] != kind:
            raise DatasetError(
                f"{shown(path)}: found an unknown kind of name, expected IM-0001-NUMBER-{kind}contour-manual.txt; "
                "rename or remove it"
            )
        number = int(match["number"])
        if number in contours:
            raise DatasetError(
                f"{shown(path)}: found a second contour of image {number} beside {contours[number].path.name}, "
                "expected one; remove one"
            )
        contours[number] = Contour(path, number, _read_points(path))
    return contours


def paint(contour: Contour, shape_yx: tuple[int, int]) -> Mask:
    """The pixels whose centres lie inside a contour, by the even-odd rule, `[Y, X]`.

    Raises:
        DatasetError: the contour leaves the image, or holds no pixel.
    """
    height, width = shape_yx
    x, y = contour.points_xy.T
    low, high = contour.points_xy.min(axis=0), contour.points_xy.max(axis=0)
    if low.min() < -0.5 or high[0] > width - 0.5 or high[1] > height - 0.5:
        raise DatasetError(
            f"{shown(contour.path)}: found points outside its image of {times((width, height))} pixels, expected all "
            "inside; find the contour that belongs to this image"
        )
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    rows = np.arange(height)[:, None]
    row, edge = np.nonzero((y <= rows) != (next_y <= rows))
    slope = (row - y[edge]) / (next_y[edge] - y[edge])
    crossing = x[edge] + slope * (next_x[edge] - x[edge])
    # Every crossing turns all pixels from there to the right inside out.
    turns = np.zeros((height, width + 1), np.int64)
    np.add.at(turns, (row, np.clip(np.ceil(crossing).astype(np.int64), 0, width)), 1)
    mask: Mask = np.cumsum(turns, axis=1)[:, :width] % 2 == 1
    if not mask.any():
        raise DatasetError(f"{shown(contour.path)}: found a contour around no pixel, expected an area; remove it")
    return mask


def check_enclosed(inner: Contour, outer: Contour, shape_yx: tuple[int, int]) -> None:
    """Refuse a cavity (`inner`) that does not lie inside the heart's outer border (`outer`).

    Raises:
        DatasetError: naming both files.
    """
    cavity, heart = paint(inner, shape_yx), paint(outer, shape_yx)
    share = np.count_nonzero(cavity & heart) / np.count_nonzero(cavity)
    if share < _ENCLOSED:
        raise DatasetError(
            f"{shown(outer.path)}: found a contour that encloses {share:.0%} of {shown(inner.path)}, expected at least "
            f"{_ENCLOSED:.0%}; one of them is of another image or patient, replace it"
        )


def check_nobody_twice(contours: Sequence[tuple[str, Contour]]) -> None:
    """Refuse contours, given with their patients, that agree to the point between two patients: hands never do.

    Raises:
        DatasetError: naming both files.
    """
    seen: dict[bytes, tuple[str, Contour]] = {}
    for patient, contour in contours:
        other, first = seen.setdefault(contour.points_xy.tobytes(), (patient, contour))
        if other != patient:
            raise DatasetError(
                f"{shown(contour.path)}: found contours of the wrong patient (the same as {shown(first.path)}), "
                f"expected {patient}'s own; replace or remove one of the two"
            )


def _read_points(path: Path) -> NDArray[np.float64]:
    points = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        match = _POINT.fullmatch(line.strip())
        if not match:
            raise DatasetError(
                f"{shown(path)}: found '{one_line(line, limit=40)}' in line {number}, expected two numbers 'x y'; "
                "copy the file again"
            )
        points.append((float(match[1]), float(match[2])))
    if len(points) < 3:
        raise DatasetError(f"{shown(path)}: found {len(points)} points, expected at least 3; copy the file again")
    return np.array(points) - _FIRST_PIXEL
