"""A 3D array together with where it lies in the patient.

One axis order and one world convention: arrays are indexed `[z, y, x]` (a leading channel axis for scans),
tuples ending in `_xyz` are in ITK order, and the world is LPS in millimetres (ITK and DICOM; NIfTI's RAS is
converted by the readers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]


@dataclass(frozen=True)
class NiftiForms:
    """The two places that a NIfTI header states for one volume, as stored: RAS, float32 values.

    Source: nifti1.h, "3D IMAGE (VOLUME) ORIENTATION AND LOCATION IN SPACE".

    Attributes:
        qform_code, sform_code: what each form refers to, 1 to 5.
        qfac: `pixdim[0]`, 1, -1 or 0, which means 1.
        quaternion: b, c, d.
        offset: of the qform, mm.
        sform: three rows of four numbers, row by row.
    """

    qform_code: int
    sform_code: int
    qfac: float
    quaternion: tuple[float, float, float]
    offset: tuple[float, float, float]
    sform: tuple[float, ...]


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume in LPS patient space.

    Attributes:
        size_xyz: number of voxels along each array axis, x fastest.
        spacing_xyz: voxel edge lengths in mm, all positive.
        origin_lps: centre of voxel (0, 0, 0) in mm.
        direction_lps: 3x3 matrix in row-major order; column i is the unit vector of axis i.
        nifti_forms: both forms of a NIfTI scan that states two different ones, so that a label map can state the same
            two; None for every other scan. The fields above are the form that was used.
    """

    size_xyz: tuple[int, int, int]
    spacing_xyz: tuple[float, float, float]
    origin_lps: tuple[float, float, float]
    direction_lps: tuple[float, ...]
    nifti_forms: NiftiForms | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.direction_lps) != 9:
            raise ValueError(f"direction_lps has {len(self.direction_lps)} entries, expected 9")

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Array shape of one channel."""
        x, y, z = self.size_xyz
        return (z, y, x)

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Spacing in array axis order, mm."""
        x, y, z = self.spacing_xyz
        return (z, y, x)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        x, y, z = self.spacing_xyz
        return x * y * z / 1000.0


@dataclass(frozen=True, eq=False)
class Volume:
    """An array and its geometry.

    Attributes:
        array: a scan `[C, Z, Y, X]` (or `[Z, Y, X]` for one channel), or a label map `[Z, Y, X]`.
        geometry: the grid that the spatial axes lie on.
        warnings: what a reader of the scan should know though it was accepted, one sentence each.
    """

    array: Array
    geometry: Geometry
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.array, np.ma.MaskedArray):  # what is masked would be read all the same
            raise ValueError("array is masked, expected a plain one: decide with array.filled(value) what is hidden")
        if self.array.ndim not in (3, 4):
            raise ValueError(f"array has {self.array.ndim} axes, expected 3 [Z,Y,X] or 4 [C,Z,Y,X]")
        if self.array.shape[-3:] != self.geometry.shape_zyx:
            raise ValueError(
                f"array {self.array.shape} does not fit the geometry's shape_zyx {self.geometry.shape_zyx}"
            )

    @property
    def channels_czyx(self) -> Array:
        """The array with its channel axis, `[C, Z, Y, X]`."""
        return self.array if self.array.ndim == 4 else self.array[None]
