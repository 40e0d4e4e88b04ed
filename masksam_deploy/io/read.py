"""Reading a scan: one file, one DICOM series, or one of these per channel."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import MemoryLimitError, ScanError
from masksam_deploy.base.isolation import SharedArray
from masksam_deploy.base.memory import available_memory
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.io.grid import affine_lps, check_grid, corner_shift_mm, times
from masksam_deploy.io.isolated_scan import IsolatedScan
from masksam_deploy.io.itk import scan_suffix
from masksam_deploy.io.text_header import read_meta_header, read_nrrd_header

# Far more than rounding in headers explains, far less than changes a label map.
_CHANNEL_SHIFT_VOXELS = 0.01


def read_volume(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, max_voxels: int | None = None
) -> Volume:
    """Read a scan without changing its values, its axes or its order.

    Values are those that the file states (NIfTI scaling, DICOM rescale applied) as float32, and the geometry is ITK's,
    as in nnU-Net's `SimpleITKIO`. Unlike there, everything a label map could be wrong on is refused. A worker process
    reads the file, so that one that crashes the libraries underneath is refused, too.

    Args:
        path: a `.nii`, `.nii.gz`, `.nrrd`, `.nhdr`, `.mha` or `.mhd` file; a folder with one DICOM series;
            or a sequence of these, one per channel in the order of the model's channels.
        max_voxels: the most voxels, over all channels, to read; checked before voxels are decoded.

    Returns:
        A `Volume` with a C-contiguous float32 array `[C, Z, Y, X]`.

    Raises:
        ScanError: unreadable, damaged or incomplete; not one 3D grid of finite real numbers with a stated
            orientation; or channels that do not lie on the same grid.
        MemoryLimitError: more voxels than `max_voxels`, or than the memory holds.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not paths:
        raise ScanError("found no files, expected one per channel; name at least one")
    with ExitStack() as stack:
        channels = [stack.enter_context(IsolatedScan(Path(p))) for p in paths]
        first = channels[0]
        for channel in channels:
            check_grid(channel.geometry, channel.name)
            _check_same_grid(first, channel)
        memory = stack.enter_context(_allocate((len(channels), *first.geometry.shape_zyx), first.name, max_voxels))
        for index, channel in enumerate(channels):
            channel.read_into(memory, index)
            channel.close()
            _check_finite(memory.array[index], channel.name)
    warnings = tuple(dict.fromkeys(warning for channel in channels for warning in channel.warnings))
    return Volume(memory.array, first.geometry, warnings)


def read_geometry(path: str | os.PathLike[str]) -> Geometry:
    """The grid of a scan or label map, from its header alone.

    Raises:
        ScanError, MemoryLimitError: as `read_volume`.
    """
    with IsolatedScan(Path(path)) as scan:
        check_grid(scan.geometry, scan.name)
        return scan.geometry


def files_of(path: Path) -> list[Path]:
    """The files that one channel consists of: all of a DICOM folder; with a detached header, what holds its voxels.

    Raises:
        ScanError: a detached header names no voxels.
        OSError: the path cannot be read.
    """
    if path.is_dir():
        return sorted(member for member in path.iterdir() if member.is_file())
    read_header = {".nhdr": read_nrrd_header, ".mhd": read_meta_header}.get(scan_suffix(path) or "")
    return [path, read_header(path, shown(path)).path] if read_header else [path]


def _check_same_grid(first: IsolatedScan, other: IsolatedScan) -> None:
    a, b = first.geometry, other.geometry
    for name, left, right in (("size", a.size_xyz, b.size_xyz), ("spacing", a.spacing_xyz, b.spacing_xyz)):
        same = left == right if name == "size" else np.allclose(left, right, rtol=1e-4, atol=0)
        if not same:
            raise ScanError(
                f"{other.name}: found {name} {times(right)}, expected {times(left)} as in {first.name}; resample the "
                "channels to one grid"
            )
    shift = corner_shift_mm(affine_lps(a), affine_lps(b), a.size_xyz)
    if not shift <= _CHANNEL_SHIFT_VOXELS * min(a.spacing_xyz):
        raise ScanError(
            f"{other.name}: found an origin or direction that puts it up to {shift:.3g} mm off {first.name}, expected "
            "the same place; resample the channels to one grid"
        )


def _allocate(shape_czyx: tuple[int, ...], name: str, max_voxels: int | None) -> SharedArray:
    voxels = int(np.prod(shape_czyx, dtype=object))
    if max_voxels is not None and voxels > max_voxels:
        raise MemoryLimitError(
            f"{name}: found {voxels} voxels ({times(shape_czyx)}), expected at most {max_voxels}; crop or resample the "
            "scan, or raise the limit (--max-ram)"
        )
    free = available_memory()
    try:
        if free is not None and 4 * voxels > free:  # the system would promise it, and end the process later
            raise MemoryError
        return SharedArray(shape_czyx)
    except (MemoryError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            raise MemoryLimitError(
                f"{name}: found a limit on the size of files, which memory shared between processes counts as, "
                f"expected at least {4 * voxels} bytes; raise the limit (ulimit -f)"
            ) from error
        raise MemoryLimitError(
            f"{name}: found {voxels} voxels ({times(shape_czyx)}), expected what fits into memory; crop or resample "
            "the scan"
        ) from error


def _check_finite(values_zyx: NDArray[np.float32], name: str) -> None:
    bad = sum(int(np.count_nonzero(~np.isfinite(plane))) for plane in values_zyx)
    if bad:
        raise ScanError(
            f"{name}: found {bad} voxels that are NaN, infinite or beyond float32, expected finite numbers; replace "
            "them"
        )
