"""The orientation in which slices of a volume are shown.

The radiological convention is used: the patient's right is on the left of the image; anterior is up in axial slices and
left in sagittal slices; superior is up in coronal and sagittal slices. The orientation is computed from the direction
matrix, so that a volume that is stored mirrored or transposed is not shown mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.volume import Array, Geometry

_LEFT, _POSTERIOR, _SUPERIOR = 0, 1, 2
_PLANES = {_SUPERIOR: "axial", _POSTERIOR: "coronal", _LEFT: "sagittal"}
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
"""Per world axis: the letter of its negative and of its positive end."""

_SECOND_LETTER = 0.35
"""Smallest component of a direction that gets a second letter: about 20 degrees."""

Vector: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """How to cut and turn an array `[Z, Y, X]`.

    Attributes:
        plane: "axial", "coronal" or "sagittal"; oblique planes have "oblique" before it.
        slice_axis, row_axis, column_axis: array axes; row indices grow downwards, column indices to the right.
        flip_rows, flip_columns: whether to reverse rows and columns.
        top, bottom, left, right: the side of the patient at each edge, main letter first.
    """

    plane: str
    slice_axis: int
    row_axis: int
    column_axis: int
    flip_rows: bool
    flip_columns: bool
    top: str
    bottom: str
    left: str
    right: str

    def slice_of(self, array_zyx: Array, index: int) -> Array:
        """Cut a slice out of an array.

        Args:
            array_zyx: `[Z, Y, X]`.
            index: of the slice along `slice_axis`.

        Returns:
            The slice as it is shown, `[rows, columns]`; a view of the array.
        """
        axes = (self.slice_axis, self.row_axis, self.column_axis)
        plane: Array = np.moveaxis(array_zyx, axes, (0, 1, 2))[index]
        rows = slice(None, None, -1 if self.flip_rows else 1)
        columns = slice(None, None, -1 if self.flip_columns else 1)
        return plane[rows, columns]


def radiological_view(geometry: Geometry) -> View:
    """Choose the view whose slices lie across the coarsest axis, so that they show the finest grid.

    Args:
        geometry: of the volume.

    Returns:
        The view; of several equally coarse axes, the one that gives axial slices is taken.
    """
    # Column i is array axis 2 - i; reversed, columns are in array order z, y, x.
    directions = np.asarray(geometry.direction_lps, np.float64).reshape(3, 3)[:, ::-1]
    # The world axis of each array axis, all different even for oblique scans: the best total agreement.
    world = max(permutations(range(3)), key=lambda order: sum(abs(directions[order[i], i]) for i in range(3)))
    spacing = geometry.spacing_zyx
    coarse = [axis for axis in range(3) if spacing[axis] > 0.99 * max(spacing)]
    slice_axis = max(coarse, key=lambda axis: world[axis])
    row_world = _POSTERIOR if world[slice_axis] == _SUPERIOR else _SUPERIOR
    row_axis = world.index(row_world)
    column_axis = 3 - slice_axis - row_axis
    down = -1.0 if row_world == _SUPERIOR else 1.0
    flip_rows = bool(directions[row_world, row_axis] * down < 0)
    flip_columns = bool(directions[world[column_axis], column_axis] < 0)
    downwards = directions[:, row_axis] * (-1 if flip_rows else 1)
    rightwards = directions[:, column_axis] * (-1 if flip_columns else 1)
    oblique = abs(directions[world[slice_axis], slice_axis]) < 0.9
    return View(
        plane=("oblique " if oblique else "") + _PLANES[world[slice_axis]],
        slice_axis=slice_axis,
        row_axis=row_axis,
        column_axis=column_axis,
        flip_rows=flip_rows,
        flip_columns=flip_columns,
        top=_side(-downwards),
        bottom=_side(downwards),
        left=_side(-rightwards),
        right=_side(rightwards),
    )


def _side(direction: Vector) -> str:
    """The side of the patient that a world direction points to: one letter, or two if it is oblique."""
    order = np.argsort(-np.abs(direction), kind="stable")
    letters = [_LETTERS[axis][int(direction[axis] > 0)] for axis in order]
    return letters[0] + (letters[1] if abs(direction[order[1]]) >= _SECOND_LETTER else "")
