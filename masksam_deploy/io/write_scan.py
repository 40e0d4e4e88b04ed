"""Writing a scan without anything but its voxels and its geometry: no names, no dates, nothing of the patient's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Array, Volume
from masksam_deploy.io.grid import check_grid
from masksam_deploy.io.read_back import write_checked


def write_scan(scan: Volume, channel: int, path: Path) -> None:
    """Write one channel as NIfTI: int16 where that holds every value, else float32.

    Args:
        scan: finite intensities `[C, Z, Y, X]` or `[Z, Y, X]`.
        channel: which one.
        path: a `.nii.gz` file.

    Raises:
        OutputError: unsuitable name or place, or the format cannot carry the geometry.
    """
    name = shown(path)
    if not path.name.endswith(".nii.gz"):
        raise OutputError(f"{name}: found an unknown file type, expected .nii.gz; rename it")
    check_grid(scan.geometry, name)
    with atomic_path(path) as temporary:
        write_checked(_smallest(scan.channels_czyx[channel]), scan.geometry, temporary, name)


def _smallest(array: Array) -> Array:
    limits = np.iinfo(np.int16)
    whole = array == np.rint(array)
    if whole.all() and array.min() >= limits.min and array.max() <= limits.max:
        return np.ascontiguousarray(array, np.int16)
    return np.ascontiguousarray(array, np.float32)
