"""Writing an image file through ITK and reading it back: ITK reports neither a full disk nor a geometry it loses."""

from __future__ import annotations

import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK

from masksam_deploy.base.errors import DiskFullError, OutputError, ScanError
from masksam_deploy.base.text import NOT_UTF8, itk_reason, one_line
from masksam_deploy.base.volume import Array, Geometry, NiftiForms
from masksam_deploy.io.grid import grid_difference
from masksam_deploy.io.itk import open_itk_file
from masksam_deploy.io.itk_header import itk_path, quiet_itk
from masksam_deploy.io.nifti_forms import SAME_PLACE_VOXELS
from masksam_deploy.io.nifti_header import read_nifti_header
from masksam_deploy.io.nifti_rewrite import is_nifti, state_forms


def write_checked(array: Array, geometry: Geometry, path: Path, name: str) -> None:
    """Write `[Z, Y, X]` and compare what is read back, bit by bit.

    A NIfTI file states both forms of a scan that has two; the other formats state the one that was used.

    Args:
        array: of a type that the format holds.
        geometry: of the array.
        path: where; only `.nii.gz` is compressed.
        name: what messages call the file.

    Raises:
        OutputError: the disk is full, or the format cannot carry the geometry.
    """
    _check_carried(geometry, path, name)
    _write(array, geometry, path, name)
    if geometry.nifti_forms and is_nifti(path):
        _state_forms(array, geometry.nifti_forms, path, name)
    _check_written(array, geometry, path, name)


def _check_carried(geometry: Geometry, path: Path, name: str) -> None:
    """Refuse a place that the float32 numbers of NIfTI cannot tell from its neighbours'."""
    if not is_nifti(path):
        return
    with np.errstate(over="ignore"):
        farthest = np.float32(max(map(abs, geometry.origin_lps)))
    if not np.spacing(farthest) <= SAME_PLACE_VOXELS * min(geometry.spacing_xyz):
        raise OutputError(
            f"{name}: the format cannot carry the geometry: origin {geometry.origin_lps}; write .nrrd or .mha instead"
        )


def _write(array: Array, geometry: Geometry, path: Path, name: str) -> None:
    try:
        with quiet_itk():
            image = SimpleITK.GetImageFromArray(array)
            image.SetSpacing(geometry.spacing_xyz)
            image.SetOrigin(geometry.origin_lps)
            image.SetDirection(geometry.direction_lps)
            SimpleITK.WriteImage(image, itk_path(path), useCompression=False)
    except RuntimeError as error:
        message = f"{name}: ITK cannot write it ({itk_reason(error)}); check the disk or use .nrrd"
        raise _failed(array, path, name, message) from error
    except UnicodeError as error:
        raise OutputError(f"{name}: {NOT_UTF8}") from error


def _state_forms(array: Array, forms: NiftiForms, path: Path, name: str) -> None:
    try:
        state_forms(path, forms)
    except (struct.error, OverflowError) as error:
        raise OutputError(
            f"{name}: found a qform or sform beyond what NIfTI holds, expected what a scan states; write .nrrd or .mha"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = one_line(getattr(error, "strerror", None) or str(error))
        raise _failed(array, path, name, f"{name}: cannot be written whole ({reason}); check the disk") from error


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
        same_forms = not (geometry.nifti_forms and is_nifti(path)) or (
            read_nifti_header(path, name).forms.stored == geometry.nifti_forms
        )
    except (ScanError, TypeError) as error:
        message = f"{name}: does not read back after writing ({error}); check the disk"
        raise _failed(array, path, name, message) from error
    if not (same_forms and np.array_equal(written, array)):
        raise _failed(array, path, name, f"{name}: holds other values than were written; check the disk")


def _failed(array: Array, path: Path, name: str, message: str) -> OutputError:
    """What to say about a file that did not become whole: `message`, unless the disk is full.

    ITK loses the system's reason. The half file still takes its place now, so what is free tells.
    """
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < array.nbytes:
            return DiskFullError(f"{name}: cannot be written: the disk is full; free some space")
    return OutputError(message)
