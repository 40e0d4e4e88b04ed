"""Writing a label map on the grid of its scan."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK

from masksam_deploy.atomic import atomic_path
from masksam_deploy.errors import OutputError, ScanError
from masksam_deploy.io.grid import check_grid, grid_difference
from masksam_deploy.io.itk import open_itk_file, quiet_itk
from masksam_deploy.text import NOT_UTF8, is_utf8, itk_reason, shown
from masksam_deploy.volume import Array, Geometry, Volume

LABEL_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def write_labels(labels: Volume, path: str | Path) -> None:
    """Write a label map as uint8, or uint16 if a value exceeds 255, with the volume's exact geometry.

    The file appears under its name only after it has been read back and found to hold the same geometry and
    the same labels: ITK reports neither a full disk nor a geometry that a format cannot carry.

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
        _write(array, labels.geometry, temporary, name)
        _check_written(array, labels.geometry, temporary, name)


def check_label_name(path: Path) -> None:
    """Refuse a path that `write_labels` cannot write: of another type, or not in UTF-8.

    Raises:
        OutputError: says which types there are.
    """
    name = shown(path)
    if not is_utf8(path):
        raise OutputError(f"{name}: {NOT_UTF8}")
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


def _write(array: Array, geometry: Geometry, path: Path, name: str) -> None:
    try:
        with quiet_itk():
            image = SimpleITK.GetImageFromArray(array)
            image.SetSpacing(geometry.spacing_xyz)
            image.SetOrigin(geometry.origin_lps)
            image.SetDirection(geometry.direction_lps)
            SimpleITK.WriteImage(image, str(path), useCompression=False)
    except RuntimeError as error:
        message = f"{name}: ITK cannot write it ({itk_reason(error)}); check the disk or use .nrrd"
        raise _failed(array, path, name, message) from error


def _check_written(array: Array, geometry: Geometry, path: Path, name: str) -> None:
    written = np.empty_like(array)
    try:
        channel = open_itk_file(path, "the written file")
        difference = grid_difference(channel.geometry, geometry)
        if difference:
            raise OutputError(
                f"{name}: the format cannot carry the geometry: {difference}; write .nrrd or .mha instead"
            )
        channel.read_into(written)
    except (ScanError, TypeError) as error:
        message = f"{name}: does not read back after writing ({error}); check the disk"
        raise _failed(array, path, name, message) from error
    if not np.array_equal(written, array):
        raise _failed(array, path, name, f"{name}: holds other labels than were written; check the disk")


def _failed(array: Array, path: Path, name: str, message: str) -> OutputError:
    """What to say about a file that did not become whole: `message`, unless the disk is full.

    ITK loses the system's reason. The half file still takes its place now, so what is free tells.
    """
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < array.nbytes:
            return OutputError(f"{name}: cannot be written: the disk is full; free some space")
    return OutputError(message)
