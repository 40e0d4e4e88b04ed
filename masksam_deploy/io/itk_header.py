"""ITK's own reading of a header, against which ours is checked.

ITK is given a copy of the header that holds only what has been checked, in a temporary folder, and never the file:
it cannot meet anything else there, and neither the file's name nor its voxels matter to it.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import itk_reason, one_line
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io.grid import affine_lps, check_grid, corner_shift_mm, times

_IMAGE_IO = {".nii": "NiftiImageIO", ".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
_PIXEL_TYPES = {
    SimpleITK.sitkUInt8: "u1",
    SimpleITK.sitkInt8: "i1",
    SimpleITK.sitkUInt16: "u2",
    SimpleITK.sitkInt16: "i2",
    SimpleITK.sitkUInt32: "u4",
    SimpleITK.sitkInt32: "i4",
    SimpleITK.sitkUInt64: "u8",
    SimpleITK.sitkInt64: "i8",
    SimpleITK.sitkFloat32: "f4",
    SimpleITK.sitkFloat64: "f8",
}
# Both readings compute in double; what is left is the rounding of a few operations.
_SAME_PLACE_VOXELS = 1e-3


@dataclass(frozen=True)
class ItkReading:
    """What ITK makes of a header.

    Attributes:
        geometry: the grid, without trailing axes of one entry.
        voxel_type: kind and size, as `u1` to `f8`.
    """

    geometry: Geometry
    voxel_type: str


class _Quiet:
    """ITK's one switch for warnings, shared by threads: the first in turns it off, the last out puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
                SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                SimpleITK.ProcessObject.SetGlobalWarningDisplay(self._before)


_QUIET = _Quiet()


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep ITK's warnings off the terminal; what matters in them is checked and raised by us."""
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()


def itk_path(path: Path) -> str:
    """A path as ITK takes it: its bytes are UTF-8, whatever the locale makes Python think of them.

    Raises:
        UnicodeDecodeError: they are not.
        UnicodeEncodeError: the system has no bytes for it.
    """
    return os.fsencode(path).decode("utf-8")


def itk_reading(header: bytes, suffix: str, what: str) -> ItkReading:
    """What ITK reads in a header of the format that `suffix` (`.nii`, `.nrrd` or `.mha`) tells.

    Raises:
        ScanError: ITK refuses it, or reads no 3D grid of single real numbers, or one that nothing can be placed on; or
            there is no room for a temporary file.
    """
    with _temporary(header, suffix, what) as path, quiet_itk():
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(path)
        reader.SetImageIO(_IMAGE_IO[suffix])
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if "orthonormal" in str(error):
                raise ScanError(
                    f"{what}: found a sheared geometry (axes not at right angles), expected right angles; resample the "
                    "scan"
                ) from error
            raise ScanError(f"{what}: found a header that ITK refuses ({itk_reason(error)}); check the file") from error
        if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _PIXEL_TYPES:
            kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
            raise ScanError(f"{what}: found {kind} voxels, expected one real number per voxel; convert the scan")
        geometry = _geometry(reader, what)
        check_grid(geometry, what)
        return ItkReading(geometry, _PIXEL_TYPES[reader.GetPixelID()])


def check_same_voxels(
    itk: ItkReading, size_xyz: tuple[int, int, int], voxel_type: np.dtype[np.generic], what: str
) -> None:
    """Check that ITK reads the same number and type of voxels as we do.

    Raises:
        ScanError: they differ.
    """
    if itk.voxel_type != f"{voxel_type.kind}{voxel_type.itemsize}":
        raise ScanError(
            f"{what}: found voxels of type {voxel_type.name} that SimpleITK {SimpleITK.Version_VersionString()} reads "
            f"as {np.dtype(itk.voxel_type).name}, expected one type; convert the scan, e.g. to .nii.gz"
        )
    if itk.geometry.size_xyz != size_xyz:
        raise ScanError(
            f"{what}: found two readings of its size, {times(size_xyz)} and {times(itk.geometry.size_xyz)}, expected "
            "one; repair the header"
        )


def check_same_place(itk: ItkReading, geometry: Geometry, what: str) -> None:
    """Check that ITK places every voxel where we do.

    Raises:
        ScanError: it does not, as SimpleITK before 2.5.4 with NRRD files in LAS space.
    """
    shift = corner_shift_mm(affine_lps(itk.geometry), affine_lps(geometry), geometry.size_xyz)
    if not shift <= _SAME_PLACE_VOXELS * min(geometry.spacing_xyz):
        raise ScanError(
            f"{what}: found a geometry that SimpleITK {SimpleITK.Version_VersionString()} reads otherwise (up to "
            f"{shift:.3g} mm off), expected one reading; install a newer SimpleITK, or convert the scan to .nii.gz"
        )


@contextmanager
def _temporary(header: bytes, suffix: str, what: str) -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="masksam-header-")
    except OSError as error:
        raise _no_room(what, error) from error
    with folder as name:
        path = Path(name) / f"header{suffix}"
        try:
            path.write_bytes(header)
            in_utf8 = itk_path(path)
        except (OSError, UnicodeError) as error:
            raise _no_room(what, error) from error
        yield in_utf8


def _no_room(what: str, error: OSError | UnicodeError) -> ScanError:
    reason = one_line(getattr(error, "strerror", None) or str(error))
    return ScanError(
        f"{what}: found no room for a temporary file ({reason}), expected a few kB; set TMPDIR to a folder that can be "
        "written, with a name in UTF-8"
    )


def _geometry(reader: SimpleITK.ImageFileReader, what: str) -> Geometry:
    """ITK's geometry as it is, without trailing axes of one entry."""
    size = reader.GetSize()
    n = len(size)
    axes = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(n, n)
    if n < 3 or any(s != 1 for s in size[3:]) or np.any(axes[:3, 3:]) or np.any(axes[3:, :3]):
        raise ScanError(f"{what}: found a {n}D image ({times(size)}), expected one 3D scan; extract one volume")
    x, y, z = size[:3]
    spacing, origin = reader.GetSpacing(), reader.GetOrigin()
    return Geometry(
        size_xyz=(int(x), int(y), int(z)),
        spacing_xyz=(spacing[0], spacing[1], spacing[2]),
        origin_lps=(origin[0], origin[1], origin[2]),
        direction_lps=tuple(float(v) for v in axes[:3, :3].ravel()),
    )
