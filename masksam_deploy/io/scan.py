"""Reading a scan: one file, one DICOM series, or one of these per channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.errors import MemoryLimitError, ScanError
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.dicom import is_dicom_file, open_dicom_series
from masksam_deploy.io.grid import affine_lps, corner_shift_mm, times
from masksam_deploy.io.itk import open_itk_file, scan_suffix
from masksam_deploy.io.text_header import read_meta_header, read_nrrd_header
from masksam_deploy.text import NOT_UTF8, is_utf8, one_line, shown
from masksam_deploy.volume import Volume

# Far more than rounding in headers explains, far less than changes a label map.
_CHANNEL_SHIFT_VOXELS = 0.01


def read_volume(path: str | Path | Sequence[str | Path], *, max_voxels: int | None = None) -> Volume:
    """Read a scan without changing its values, its axes or its order.

    Values are what ITK gives (NIfTI scaling, DICOM rescale applied) as float32, and the geometry is ITK's, as
    in nnU-Net's `SimpleITKIO`. Unlike there, everything a label map could be wrong on is refused.

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
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    if not paths:
        raise ScanError("found no files, expected one per channel; name at least one")
    channels = [open_channel(Path(p)) for p in paths]
    geometry = channels[0].geometry
    for channel in channels[1:]:
        _check_same_grid(channels[0], channel)
    array = _allocate((len(channels), *geometry.shape_zyx), channels[0].name, max_voxels)
    for channel, out in zip(channels, array, strict=True):
        try:
            channel.read_into(out)
        except OSError as error:
            raise _unreadable(channel.name, error) from error
        _check_finite(out, channel.name)
    return Volume(array, geometry)


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


def open_channel(path: Path) -> Channel:
    """Read and judge the headers of a file or of a DICOM folder; the voxels are read later, by the channel.

    Raises:
        ScanError: it cannot be read, or not safely.
    """
    name = shown(path)
    if not is_utf8(path):
        raise ScanError(f"{name}: {NOT_UTF8}")
    try:
        if path.is_dir():
            return open_dicom_series(path)
        if not path.exists():
            raise ScanError(f"{name}: found no such file, expected a scan; check the path")
        if not path.is_file():
            raise ScanError(f"{name}: found neither a file nor a folder, expected a scan; check the path")
        if path.stat().st_size == 0:
            raise ScanError(f"{name}: found an empty file, expected a scan; copy it again")
        if scan_suffix(path) is None and (is_dicom_file(path) or path.suffix.lower() == ".dcm"):
            raise ScanError(
                f"{name}: found one DICOM file, expected the folder of its series; give {shown(path.parent)}"
            )
        return open_itk_file(path)
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> ScanError:
    # In a folder, or of a header and its voxels, one file may be the unreadable one.
    where = shown(error.filename) if isinstance(error.filename, (str, Path)) else name
    return ScanError(
        f"{where}: cannot be read: {one_line(error.strerror or str(error))}; check the path and permissions"
    )


def _check_same_grid(first: Channel, other: Channel) -> None:
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


def _allocate(shape_czyx: tuple[int, ...], name: str, max_voxels: int | None) -> NDArray[np.float32]:
    voxels = int(np.prod(shape_czyx, dtype=object))
    if max_voxels is not None and voxels > max_voxels:
        raise MemoryLimitError(
            f"{name}: found {voxels} voxels ({times(shape_czyx)}), expected at most {max_voxels}; crop or resample the "
            "scan, or raise the limit (--max-ram)"
        )
    try:
        return np.empty(shape_czyx, dtype=np.float32)
    except (MemoryError, ValueError) as error:
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
