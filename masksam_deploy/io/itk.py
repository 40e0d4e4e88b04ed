"""NIfTI, NRRD and MetaImage files, read by ITK after their headers have been judged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK

from masksam_deploy.errors import ScanError
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.grid import check_grid, times
from masksam_deploy.io.nifti_header import check_gzip, check_itk_agrees, check_nifti_voxels, read_nifti_header
from masksam_deploy.io.text_header import (
    VoxelData,
    check_data,
    check_data_size,
    read_meta_header,
    read_nrrd_header,
)
from masksam_deploy.text import itk_reason, shown
from masksam_deploy.volume import Array, Geometry

_IMAGE_IO = {
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
SCAN_SUFFIXES = tuple(_IMAGE_IO)
_SCALAR_BYTES = {
    SimpleITK.sitkUInt8: 1,
    SimpleITK.sitkInt8: 1,
    SimpleITK.sitkUInt16: 2,
    SimpleITK.sitkInt16: 2,
    SimpleITK.sitkUInt32: 4,
    SimpleITK.sitkInt32: 4,
    SimpleITK.sitkUInt64: 8,
    SimpleITK.sitkInt64: 8,
    SimpleITK.sitkFloat32: 4,
    SimpleITK.sitkFloat64: 8,
}


def open_itk_file(path: Path, name: str | None = None) -> Channel:
    """Read the header of one file; its voxels come with `Channel.read_into`. Messages say `name` or the path.

    Raises:
        ScanError: the file is not a 3D scan of real numbers on a plausible grid.
        OSError: the file cannot be read.
    """
    what = name or shown(path)
    suffix = scan_suffix(path)
    if suffix is None:
        raise ScanError(f"{what}: found an unknown file type, expected one of {', '.join(SCAN_SUFFIXES)}; convert it")
    if suffix in (".nii", ".nii.gz"):
        return _open_nifti(path, what)
    data = read_nrrd_header(path, what) if suffix in (".nrrd", ".nhdr") else read_meta_header(path, what)
    return _open_text_headed(path, data, what)


def scan_suffix(path: Path) -> str | None:
    """The suffix that tells the format, in lower case, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SCAN_SUFFIXES if name.endswith(suffix)), None)


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


def _open_nifti(path: Path, what: str) -> Channel:
    header = read_nifti_header(path, what)
    if any(c.isupper() for c in path.name[-4:]) and not path.name.endswith((".NII", ".NII.GZ")):
        raise ScanError(f"{what}: found a suffix in mixed case, which ITK cannot read; rename it to .nii or .nii.gz")
    reader, geometry = _read_information(path, what)
    if geometry.size_xyz != header.size_xyz:
        raise ScanError(f"{what}: found two readings of its size, expected {times(header.size_xyz)}; repair the header")
    check_itk_agrees(header, geometry, what)

    def read_into(out: Array) -> None:
        if header.is_scaled:
            check_nifti_voxels(path, header, what)
            _decode(reader, out, what)
        else:  # what is stored is what ITK would give: the check's own pass over the file is enough
            check_nifti_voxels(path, header, what, out)

    return Channel(what, geometry, read_into)


def _open_text_headed(path: Path, data: VoxelData, what: str) -> Channel:
    reader, geometry = _read_information(path, what)
    voxels = int(np.prod(geometry.size_xyz, dtype=object))
    expected = voxels * _SCALAR_BYTES[reader.GetPixelID()]
    check_data_size(data, expected, what)

    def read_into(out: Array) -> None:
        check_data(data, expected, what)
        _decode(reader, out, what)

    return Channel(what, geometry, read_into)


def _read_information(path: Path, what: str) -> tuple[SimpleITK.ImageFileReader, Geometry]:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_IMAGE_IO[scan_suffix(path) or ""])
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise ScanError(
                f"{what}: found a sheared geometry (axes not at right angles), expected right angles; resample the scan"
            ) from error
        if scan_suffix(path) == ".nii.gz":
            # ITK inflates more than our look at the header does, and blames the header for what it meets there.
            check_gzip(path, what)
        raise ScanError(f"{what}: found a header that ITK refuses ({itk_reason(error)}); check the file") from error
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _SCALAR_BYTES:
        kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
        raise ScanError(f"{what}: found {kind} voxels, expected one real number per voxel; convert the scan")
    geometry = _geometry(reader, what)
    check_grid(geometry, what)
    return reader, geometry


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


def _decode(reader: SimpleITK.ImageFileReader, out: Array, what: str) -> None:
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError as error:
        raise ScanError(
            f"{what}: found voxels that ITK cannot read ({itk_reason(error)}); copy the file again"
        ) from error
    values = SimpleITK.GetArrayViewFromImage(image)
    if values.size != out.size:
        raise ScanError(f"{what}: found a file that changed while it was read; read it again")
    # A double too large for float32 becomes infinite here and is refused with the other non-finite voxels.
    with np.errstate(over="ignore"):
        np.copyto(out, values.reshape(out.shape), casting="same_kind")
