"""Is a grid one that a label map can be trusted on, and are two grids the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.volume import Geometry

MIN_SPACING_MM = 1e-3
MAX_SPACING_MM = 1e3
# Direction cosines in files are often rounded to 4 decimals; beyond a few such roundings the axes are
# sheared.
ORTHONORMAL_TOLERANCE = 1e-3
# NIfTI keeps geometry in float32 (relative 6e-8); anything coarser than this was changed, not rounded.
SAME_RELATIVE = 1e-4
SAME_ORIGIN_VOXELS = 1e-2


def check_grid(geometry: Geometry, what: str) -> None:
    """Refuse a grid that is flat, has impossible spacing, or whose axes are not at right angles.

    Raises:
        ScanError: naming the offending property.
    """
    if min(geometry.size_xyz) < 2:
        raise ScanError(
            f"{what}: found a size of {times(geometry.size_xyz)} voxels, expected a 3D scan with at least 2 along "
            "every axis; give the whole volume, not one slice"
        )
    check_spacing(geometry.spacing_xyz, what)
    if not all(math.isfinite(v) for v in (*geometry.origin_lps, *geometry.direction_lps)):
        raise ScanError(f"{what}: found an origin or direction that is not finite, expected numbers; repair the header")
    axes = direction_matrix(geometry)
    error = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if error > ORTHONORMAL_TOLERANCE:
        raise ScanError(
            f"{what}: found image axes that are sheared or not of unit length (by {error:.2g}), expected right angles; "
            "resample the scan to an unsheared grid"
        )


def check_spacing(spacing_xyz: Sequence[float], what: str) -> None:
    """Raise `ScanError` unless all three spacings lie between 0.001 and 1000 mm."""
    if not all(MIN_SPACING_MM <= s <= MAX_SPACING_MM for s in spacing_xyz):
        raise ScanError(
            f"{what}: found a voxel spacing of {times(spacing_xyz)} mm, expected {MIN_SPACING_MM:g} to "
            f"{MAX_SPACING_MM:g} mm along every axis; repair the header"
        )


def direction_matrix(geometry: Geometry) -> NDArray[np.float64]:
    """The 3x3 direction; column i is the unit vector of axis i in LPS."""
    return np.asarray(geometry.direction_lps, dtype=np.float64).reshape(3, 3)


def affine_lps(geometry: Geometry) -> NDArray[np.float64]:
    """The 3x4 matrix from voxel index (x, y, z, 1) to LPS millimetres."""
    steps = direction_matrix(geometry) * np.asarray(geometry.spacing_xyz)
    return np.column_stack([steps, np.asarray(geometry.origin_lps)])


def corner_shift_mm(
    affine_a: NDArray[np.float64], affine_b: NDArray[np.float64], size_xyz: tuple[int, int, int]
) -> float:
    """How far apart two 3x4 affines put the corner they disagree on most; NaN if either is not finite."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in size_xyz))), dtype=np.float64)
    homogeneous = np.column_stack([corners, np.ones(8)])
    return float(np.linalg.norm(homogeneous @ (affine_a - affine_b).T, axis=1).max())


def times(values: Sequence[float]) -> str:
    """`3 x 4 x 5`."""
    return " x ".join(str(v) if isinstance(v, int) else f"{v:.6g}" for v in values)


def grid_difference(found: Geometry, wanted: Geometry) -> str | None:
    """What differs between two grids, size, spacing, origin or direction, with both values; None if they are one."""
    if found.size_xyz != wanted.size_xyz:
        return f"size {found.size_xyz} instead of {wanted.size_xyz}"
    if not np.allclose(found.spacing_xyz, wanted.spacing_xyz, rtol=SAME_RELATIVE, atol=0):
        return f"spacing {found.spacing_xyz} instead of {wanted.spacing_xyz}"
    if not np.allclose(found.origin_lps, wanted.origin_lps, rtol=0, atol=SAME_ORIGIN_VOXELS * min(wanted.spacing_xyz)):
        return f"origin {found.origin_lps} instead of {wanted.origin_lps}"
    if not np.allclose(found.direction_lps, wanted.direction_lps, rtol=0, atol=SAME_RELATIVE):
        return f"direction {found.direction_lps} instead of {wanted.direction_lps}"
    return None
