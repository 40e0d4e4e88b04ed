"""Writing a label map on the grid of its scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import OutputError, ScanError
from masksam_deploy.base.text import NOT_UTF8, shown
from masksam_deploy.base.volume import Array, Volume
from masksam_deploy.io.grid import check_grid
from masksam_deploy.io.itk_header import itk_path
from masksam_deploy.io.read_back import write_checked

LABEL_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def write_labels(labels: Volume, path: str | Path) -> None:
    """Write a label map as uint8, or uint16 if a value exceeds 255, with the volume's exact geometry.

    The file appears under its name only after it has been read back and found to hold the same geometry and
    the same labels: ITK reports neither a full disk nor a geometry that a format cannot carry. Where the scan's NIfTI
    header states two places, a NIfTI label map states the same two, and the other formats the one that was used.

    Args:
        labels: integers `[Z, Y, X]` from 0 to 65535.
        path: a `.nii`, `.nii.gz`, `.nrrd` or `.mha` file; only `.nii.gz` is compressed.

    Raises:
        OutputError: unsuitable labels, type or place; the disk is full; or the format cannot carry the
            geometry.
    """
    path = Path(path)
    name = shown(path)
    check_label_name(path)
    array = _smallest(labels.array, name)
    try:
        check_grid(labels.geometry, name)
    except ScanError as error:
        raise OutputError(str(error)) from error
    with atomic_path(path) as temporary:
        write_checked(array, labels.geometry, temporary, name)


def check_label_name(path: Path) -> None:
    """Refuse a path that `write_labels` cannot write: of another type, or not in UTF-8, whatever the locale says.

    Raises:
        OutputError: says which types there are.
    """
    name = shown(path)
    try:
        itk_path(path)
    except UnicodeDecodeError as error:
        raise OutputError(f"{name}: {NOT_UTF8}") from error
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{name}: the path holds letters that file names cannot have here ({error.encoding}), expected others; "
            "rename it, or set a locale with UTF-8"
        ) from error
    if path.name.lower().endswith((".mhd", ".nhdr")):
        raise OutputError(
            f"{name}: found a format of two files, which cannot be replaced in one step; write .mha or .nrrd instead"
        )
    if not path.name.lower().endswith(LABEL_SUFFIXES):
        raise OutputError(f"{name}: found an unknown file type, expected one of {', '.join(LABEL_SUFFIXES)}; rename it")


def _smallest(array: Array, name: str) -> Array:
    if array.ndim != 3:
        raise OutputError(f"{name}: found labels with {array.ndim} axes, expected 3 [Z, Y, X]; write one label map")
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise OutputError(f"{name}: found labels of type {array.dtype}, expected integers; convert them first")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise OutputError(f"{name}: found labels from {low} to {high}, expected 0 to 65535; renumber them")
    return np.ascontiguousarray(array, dtype=np.uint8 if high <= 255 else np.uint16)
