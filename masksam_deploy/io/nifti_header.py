"""What ITK does not tell about a NIfTI file, read from its raw 348-byte header.

ITK fills the missing end of a truncated file with zeros, replaces NaN and infinite voxels by 0 and a zero or
NaN voxel size by 1, and crashes on some vector files; all without a word. So the file is judged here before
ITK sees it. Layout: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.errors import ScanError
from masksam_deploy.io.grid import affine_lps, check_spacing, corner_shift_mm, times
from masksam_deploy.volume import Array, Geometry

_HEADER_BYTES = 348
_VOXEL_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_OTHER_TYPES = {1: "binary", 32: "complex", 128: "RGB", 1536: "float128", 1792: "complex", 2304: "RGBA"}
# Deflate cannot shrink data further than about 1032:1, so a header that promises more is lying.
MAX_DEFLATE_RATIO = 1040
_CHUNK = 1 << 20
_GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
# ITK turns a slightly skewed matrix into a rotation; a tenth of a voxel at the far corner is more than that
# does.
_AFFINE_TOLERANCE_VOXELS = 0.1


@dataclass(frozen=True)
class NiftiHeader:
    """The checked fields of a NIfTI-1 header.

    Attributes:
        size_xyz: voxels per axis.
        offset: bytes before the first voxel, in the decompressed file.
        voxel_type: as stored, with byte order, before scaling.
        is_scaled: whether the voxels are other numbers than what is stored.
        affines_lps: the 3x4 matrices that the file states, named `sform` and `qform`.
    """

    size_xyz: tuple[int, int, int]
    offset: int
    voxel_type: np.dtype[np.generic]
    is_scaled: bool
    affines_lps: dict[str, NDArray[np.float64]]

    @property
    def needed_bytes(self) -> int:
        """Length of the decompressed file up to the last voxel."""
        return self.offset + math.prod(self.size_xyz) * self.voxel_type.itemsize


def read_nifti_header(path: Path, what: str) -> NiftiHeader:
    """Read and judge the header of a `.nii` or `.nii.gz` file.

    Raises:
        ScanError: not NIfTI-1 in one file, not a 3D grid of real scalars, or without a stated geometry.
        OSError: the file cannot be read.
    """
    raw = _first_bytes(path, what)
    order = _byte_order(raw, what)
    dim = struct.unpack_from(f"{order}8h", raw, 40)
    datatype = struct.unpack_from(f"{order}h", raw, 70)[0]
    pixdim = struct.unpack_from(f"{order}8f", raw, 76)
    offset = struct.unpack_from(f"{order}f", raw, 108)[0]
    size = _spatial_size(dim, what)
    if datatype not in _VOXEL_TYPES:
        name = _OTHER_TYPES.get(datatype, f"unknown (code {datatype})")
        raise ScanError(f"{what}: found {name} voxels, expected one real number per voxel; convert the scan")
    if not (math.isfinite(offset) and _HEADER_BYTES <= offset < 1 << 31):
        raise ScanError(
            f"{what}: found a voxel data offset of {offset:g}, expected at least 352; the header is corrupt"
        )
    if raw[123] & 7 not in (0, 2):
        raise ScanError(f"{what}: found a spatial unit other than millimetres, expected mm; rewrite the scan in mm")
    check_spacing(pixdim[1:4], what)
    scaling = struct.unpack_from(f"{order}2f", raw, 112)
    if any(math.isinf(v) for v in scaling):
        raise ScanError(f"{what}: found an infinite intensity scaling, expected numbers; repair the header")
    header = NiftiHeader(
        size_xyz=size,
        offset=int(offset),
        voxel_type=np.dtype(order + _VOXEL_TYPES[datatype]),
        is_scaled=scaling not in ((0, 0), (1, 0)),  # a slope of 0 means none
        affines_lps=_stated_affines(raw, order, pixdim, what),
    )
    # Asked before anything is allocated, so that a lying header costs nothing.
    stored = path.stat().st_size
    most = stored * MAX_DEFLATE_RATIO if path.name.lower().endswith(".gz") else stored
    if most < header.needed_bytes:
        raise _too_short(what, f"at most {most}", header.needed_bytes)
    return header


def check_nifti_voxels(path: Path, header: NiftiHeader, what: str, out: Array | None = None) -> None:
    """Check that all voxels are there and finite and that a gzip checksum holds, in constant memory.

    Args:
        path: the file.
        header: its header.
        what: what messages call it.
        out: takes the voxels as stored, `[Z, Y, X]`, C-contiguous, of a type that their type casts to in kind.

    Raises:
        ScanError: the file is shorter than its header says, or damaged; or a voxel is NaN or infinite.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            length, bad = _scan_voxels(gzip.GzipFile(fileobj=file) if _is_gzip(file) else file, header, out)
        except _GZIP_ERRORS as error:
            raise _damaged(what, error) from error
    if length < header.needed_bytes:
        raise _too_short(what, str(length), header.needed_bytes)
    if length > header.needed_bytes:
        # A transfer in text mode adds bytes and shifts every voxel behind them.
        raise ScanError(
            f"{what}: found {length} bytes, expected {header.needed_bytes} as its header says; the file is corrupt, "
            "copy it again"
        )
    if bad:
        raise ScanError(f"{what}: found {bad} voxels that are NaN or infinite, expected finite numbers; replace them")


def check_gzip(path: Path, what: str) -> None:
    """Check that a compressed file inflates to its end, in constant memory; plain files pass.

    Raises:
        ScanError: the stream is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if not _is_gzip(file):
            return
        stream = gzip.GzipFile(fileobj=file)
        try:
            while stream.read(_CHUNK):
                pass
        except _GZIP_ERRORS as error:
            raise _damaged(what, error) from error


def _scan_voxels(stream: BinaryIO | gzip.GzipFile, header: NiftiHeader, out: Array | None) -> tuple[int, int]:
    """Length of the whole stream, and the number of voxels that are not finite; the voxels go to `out`."""
    if out is not None and not out.flags.c_contiguous:
        raise ValueError("voxels can only be read into a C-contiguous array")  # a reshaped copy would take them
    length = len(stream.read(header.offset))
    voxels = math.prod(header.size_xyz)
    flat = None if out is None else out.reshape(voxels)
    done = bad = 0
    while chunk := stream.read(_CHUNK):
        length += len(chunk)
        count = min(voxels - done, len(chunk) // header.voxel_type.itemsize)
        values = np.frombuffer(chunk, header.voxel_type, count)
        if header.voxel_type.kind == "f":
            bad += count - int(np.count_nonzero(np.isfinite(values)))
        if flat is not None:
            # A double too large for float32 becomes infinite here and is refused with the other non-finite voxels.
            with np.errstate(over="ignore"):
                np.copyto(flat[done : done + count], values, casting="same_kind")
        done += count
    return length, bad


def check_itk_agrees(header: NiftiHeader, geometry: Geometry, what: str) -> None:
    """Check that the grid ITK derived is one that the file states.

    Raises:
        ScanError: ITK mixed sform and qform into a grid that is neither.
    """
    tolerance = _AFFINE_TOLERANCE_VOXELS * min(geometry.spacing_xyz)
    itk = affine_lps(geometry)
    shifts = {k: corner_shift_mm(itk, a, geometry.size_xyz) for k, a in header.affines_lps.items()}
    if not any(shift <= tolerance for shift in shifts.values()):
        found = " and ".join(f"{shift:.3g} mm off the {name}" for name, shift in shifts.items())
        raise ScanError(
            f"{what}: found voxel sizes and orientation that contradict each other (the grid read is {found}), "
            "expected one consistent geometry; rewrite the header, e.g. by resampling the scan"
        )


def _first_bytes(path: Path, what: str) -> bytes:
    with path.open("rb") as file:
        if not _is_gzip(file):
            raw = file.read(_HEADER_BYTES)
        elif not path.name.lower().endswith(".gz"):
            raise ScanError(f"{what}: found gzip data, expected plain NIfTI by its name; rename it to .nii.gz")
        else:
            try:
                with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                    raw = stream.read(_HEADER_BYTES)
            except _GZIP_ERRORS as error:
                raise _damaged(what, error) from error
    if len(raw) < _HEADER_BYTES:
        raise ScanError(
            f"{what}: found {len(raw)} bytes of header, expected {_HEADER_BYTES}; the file is empty or cut off, copy "
            "it again"
        )
    return raw


def _byte_order(raw: bytes, what: str) -> str:
    for order in "<>":
        length = struct.unpack_from(f"{order}i", raw)[0]
        if length == 540:
            raise ScanError(f"{what}: found a NIfTI-2 file, expected NIfTI-1; convert it")
        if length == _HEADER_BYTES and raw[344:348] == b"n+1\0":
            return order
        if length == _HEADER_BYTES:
            raise ScanError(
                f"{what}: found an Analyze header or one half of a .hdr/.img pair, expected NIfTI-1 in one file; "
                "convert it"
            )
    raise ScanError(f"{what}: found something that is not NIfTI, expected a NIfTI-1 file; check the file")


def _spatial_size(dim: tuple[int, ...], what: str) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 0 or 0 in dim[1 : min(dim[0], 3) + 1]:
        raise ScanError(f"{what}: found impossible dimensions {dim}, expected 3 positive sizes; the header is corrupt")
    axes = list(dim[1 : dim[0] + 1])
    # A trailing axis of one entry (or none: some writers put 0 there) holds no further data.
    while len(axes) > 3 and axes[-1] in (0, 1):
        axes.pop()
    if len(axes) == 5 and axes[3] in (0, 1):
        # The fifth axis is the standard's place for what is not a volume of its own.
        raise ScanError(
            f"{what}: found {axes[4]} values per voxel (a colour or vector image), expected one; give a scan with one "
            "value per voxel"
        )
    if len(axes) != 3:
        raise ScanError(f"{what}: found a {len(axes)}D image ({times(axes)}), expected one 3D scan; extract one volume")
    return (axes[0], axes[1], axes[2])


def _stated_affines(raw: bytes, order: str, pixdim: tuple[float, ...], what: str) -> dict[str, NDArray[np.float64]]:
    qform_code, sform_code = struct.unpack_from(f"{order}2h", raw, 252)
    ras: dict[str, NDArray[np.float64]] = {}
    if sform_code > 0:
        ras["sform"] = np.array(struct.unpack_from(f"{order}12f", raw, 280), dtype=np.float64).reshape(3, 4)
    if qform_code > 0:
        ras["qform"] = _qform(struct.unpack_from(f"{order}6f", raw, 256), pixdim)
    if not ras:
        # Readers disagree on what such a file means: ITK takes LPS axes, others RAS. A guess may mirror it.
        raise ScanError(f"{what}: found neither qform nor sform, expected a stated orientation; set one in the header")
    for name, affine in ras.items():
        if not np.isfinite(affine).all():
            raise ScanError(f"{what}: found a {name} that is not finite, expected numbers; repair the header")
    if len(ras) == 2 and np.linalg.det(ras["sform"][:, :3]) * np.linalg.det(ras["qform"][:, :3]) < 0:
        raise ScanError(
            f"{what}: found a qform and an sform that are mirror images of each other, expected the same handedness; "
            "decide which side is left and rewrite the header"
        )
    return {name: np.diag([-1.0, -1.0, 1.0]) @ affine for name, affine in ras.items()}


def _qform(fields: tuple[float, ...], pixdim: tuple[float, ...]) -> NDArray[np.float64]:
    b, c, d, *offset = fields
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handedness = -1.0 if pixdim[0] < 0 else 1.0
    return np.column_stack([rotation * np.array([pixdim[1], pixdim[2], handedness * pixdim[3]]), offset])


def _is_gzip(file: BinaryIO) -> bool:
    magic = file.read(2)
    file.seek(0)
    return magic == b"\x1f\x8b"


def _damaged(what: str, error: Exception) -> ScanError:
    return ScanError(f"{what}: found a damaged gzip stream ({error}), expected an intact one; copy it again")


def _too_short(what: str, found: str, expected: int) -> ScanError:
    return ScanError(
        f"{what}: found {found} bytes, expected {expected} as its header says; the file is cut off, copy it again"
    )
