"""Distances between the surfaces of two masks.

The surface of a mask is its voxels with at least one of their six face neighbours outside it; beyond the image's border
is outside. Distances are between voxel centres, in mm.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from masksam_deploy.base.volume import Array

Mask: TypeAlias = NDArray[np.bool_]
Distances: TypeAlias = NDArray[np.float64]


def surface_distances(a: Mask, b: Mask, spacing_zyx: tuple[float, float, float]) -> tuple[float, float]:
    """The 95 % Hausdorff distance and the average symmetric surface distance.

    Args:
        a, b: masks `[Z, Y, X]` of the same shape, neither empty.
        spacing_zyx: mm.

    Returns:
        The greater of the two directed 95th percentiles, as in MONAI, and the mean over both directions pooled, mm.
    """
    surface_a, surface_b = _surface(a, spacing_zyx), _surface(b, spacing_zyx)
    directed = (_distances(surface_a, surface_b), _distances(surface_b, surface_a))
    hd95 = max(float(np.percentile(distances, 95)) for distances in directed)
    return hd95, float(np.concatenate(directed).mean())


def _surface(mask: Mask, spacing_zyx: tuple[float, float, float]) -> SimpleITK.Image:
    # One empty voxel around it: a mask that reaches the border has its surface there, and the distance map below
    # finds an outside next to every surface voxel.
    image = SimpleITK.GetImageFromArray(np.pad(mask, 1).view(np.uint8))
    image.SetSpacing(spacing_zyx[::-1])
    return SimpleITK.LabelContour(image, fullyConnected=False)


def _distances(source: SimpleITK.Image, target: SimpleITK.Image) -> Distances:
    """From every voxel of one surface to the nearest voxel of the other, mm."""
    signed = SimpleITK.SignedMaurerDistanceMap(target, squaredDistance=False, useImageSpacing=True)
    chosen: Array = SimpleITK.GetArrayViewFromImage(signed)[SimpleITK.GetArrayViewFromImage(source) > 0]
    return np.abs(chosen.astype(np.float64))
