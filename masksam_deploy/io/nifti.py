"""NIfTI-1 files: voxels as ITK would give them, decoded from the bytes that were checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.volume import Array
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.itk_header import check_same_voxels, itk_reading
from masksam_deploy.io.nifti_forms import placed
from masksam_deploy.io.nifti_header import NiftiHeader, header_for_itk, read_nifti_header
from masksam_deploy.io.voxel_stream import Convert, check_gzip, check_stored_size, read_voxels

# ITK rounds to float32 before it scales; on wide integers whose intercept cancels them that is no rounding any more.
_SCALING_TOLERANCE = 1e-5


def open_nifti(path: Path, what: str) -> Channel:
    """Read the header of a `.nii` or `.nii.gz` file; its voxels come with `Channel.read_into`.

    Raises:
        ScanError: not a 3D scan of real numbers on a plausible grid.
        OSError: the file cannot be read.
    """
    header = _header(path, what)
    itk = itk_reading(header_for_itk(header), ".nii", what)
    check_same_voxels(itk, header.voxels.size_xyz, header.voxels.voxel_type, what)
    geometry, warnings = placed(itk.geometry, header.forms, what)
    # Asked before anything is allocated, so that a lying header costs nothing.
    check_stored_size(header.voxels, what)
    convert = _conversion(header, what)

    def read_into(out: Array) -> None:
        read_voxels(header.voxels, out, what, convert)

    return Channel(what, geometry, read_into, warnings)


def _header(path: Path, what: str) -> NiftiHeader:
    try:
        return read_nifti_header(path, what)
    except ScanError:
        # Damage to the compressed stream shows in the header first, where it is not what needs mending.
        if path.name.lower().endswith(".gz"):
            check_gzip(path, what)
        raise


def _conversion(header: NiftiHeader, what: str) -> Convert | None:
    """ITK's arithmetic for scaled voxels: in double, on what is stored as double or else was rounded to float32."""
    if header.scaling is None:
        return None
    slope, intercept = header.scaling
    stored = header.voxels.voxel_type
    if stored.kind == "f" and stored.itemsize == 8:
        return lambda values: values.astype(np.float64) * slope + intercept

    def scaled(values: Array) -> Array:
        result = (values.astype(np.float32).astype(np.float64) * slope + intercept).astype(np.float32)
        if stored.kind in "iu" and stored.itemsize > 2:
            _check_rounding(values, result, slope, intercept, what)
        return result

    return scaled


def _check_rounding(values: Array, result: NDArray[np.float32], slope: float, intercept: float, what: str) -> None:
    exact = values.astype(np.float64) * slope + intercept
    if np.any(np.abs(result.astype(np.float64) - exact) > _SCALING_TOLERANCE * np.abs(exact)):
        raise ScanError(
            f"{what}: found integers beyond 2^24 whose scaling (slope {slope:g}, intercept {intercept:g}) readers "
            "compute differently, expected values that float32 holds; store the scan as float32 without a scaling"
        )
