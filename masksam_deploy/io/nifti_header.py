"""The 348-byte header of a NIfTI-1 file, judged before anything else reads it.

Layout: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masksam_deploy.base.errors import ScanError
from masksam_deploy.io.grid import check_spacing, times
from masksam_deploy.io.nifti_forms import StatedForms, check_forms, stated_forms
from masksam_deploy.io.voxel_stream import GZIP_ERRORS, StoredVoxels, damaged

HEADER_BYTES = 348
FIRST_OFFSET = 352
"""Where voxels may begin: behind the header and the four bytes that say whether extensions follow."""
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
# ITK takes a smaller slope as 1, and a smaller intercept beside a slope of 1 as 0; others scale all the same.
_SMALLEST_SCALING = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class NiftiHeader:
    """The checked fields of a NIfTI-1 header.

    Attributes:
        raw: its 348 bytes.
        order: its byte order, `<` or `>`.
        voxels: where the voxels lie.
        scaling: slope and intercept, or None where values are what is stored.
        forms: the places that it states.
    """

    raw: bytes
    order: str
    voxels: StoredVoxels
    scaling: tuple[float, float] | None
    forms: StatedForms


def read_nifti_header(path: Path, what: str) -> NiftiHeader:
    """Read and judge the header of a `.nii` or `.nii.gz` file.

    Raises:
        ScanError: not NIfTI-1 in one file, not a 3D grid of real scalars, or without a stated geometry.
        OSError: the file cannot be read.
    """
    raw, is_gzip = _first_bytes(path, what)
    order = _byte_order(raw, what)
    size = _spatial_size(struct.unpack_from(f"{order}8h", raw, 40), what)
    voxel_type = _voxel_type(raw, order, what)
    if raw[123] & 7 not in (0, 2):
        raise ScanError(f"{what}: found a spatial unit other than millimetres, expected mm; rewrite the scan in mm")
    x, y, z = struct.unpack_from(f"{order}3f", raw, 80)
    check_spacing((x, y, z), what)
    forms = stated_forms(raw, order, what)
    check_forms(forms, (x, y, z), size, what)
    voxels = StoredVoxels(
        path=path,
        start=_offset(raw, order, what),
        encoding="raw",
        voxel_type=voxel_type,
        size_xyz=size,
        head=raw,
        whole_file_is_gzip=is_gzip,
    )
    return NiftiHeader(raw, order, voxels, _scaling(raw, order, what), forms)


def header_for_itk(header: NiftiHeader) -> bytes:
    """A header with the same type, grid and forms and nothing else: no texts, no intent, no scaling."""
    copy = bytearray(FIRST_OFFSET)
    order, kept = header.order, header.raw
    struct.pack_into(f"{order}i", copy, 0, HEADER_BYTES)
    struct.pack_into(f"{order}8h", copy, 40, 3, *header.voxels.size_xyz, 1, 1, 1, 1)
    copy[70:72] = kept[70:72]  # datatype
    struct.pack_into(f"{order}h", copy, 72, 8 * header.voxels.voxel_type.itemsize)
    copy[76:92] = kept[76:92]  # pixdim[0] to pixdim[3]
    struct.pack_into(f"{order}f", copy, 108, FIRST_OFFSET)
    copy[123] = kept[123]  # units
    copy[252:328] = kept[252:328]  # both forms
    copy[344:348] = b"n+1\0"
    return bytes(copy)


def _first_bytes(path: Path, what: str) -> tuple[bytes, bool]:
    """The header, and whether the file is compressed."""
    with path.open("rb") as file:
        is_gzip = _is_gzip(file)
        if is_gzip and not path.name.lower().endswith(".gz"):
            raise ScanError(f"{what}: found gzip data, expected plain NIfTI by its name; rename it to .nii.gz")
        try:
            raw = gzip.GzipFile(fileobj=file).read(HEADER_BYTES) if is_gzip else file.read(HEADER_BYTES)
        except GZIP_ERRORS as error:
            raise damaged(what, error) from error
    if len(raw) < HEADER_BYTES:
        raise ScanError(
            f"{what}: found {len(raw)} bytes of header, expected {HEADER_BYTES}; the file is empty or cut off, copy "
            "it again"
        )
    return raw, is_gzip


def _byte_order(raw: bytes, what: str) -> str:
    for order in "<>":
        length = struct.unpack_from(f"{order}i", raw)[0]
        if length == 540:
            raise ScanError(f"{what}: found a NIfTI-2 file, expected NIfTI-1; convert it")
        if length == HEADER_BYTES and raw[344:348] == b"n+1\0":
            return order
        if length == HEADER_BYTES:
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


def _voxel_type(raw: bytes, order: str, what: str) -> np.dtype[np.generic]:
    code, bits = struct.unpack_from(f"{order}2h", raw, 70)
    if code not in _VOXEL_TYPES:
        name = _OTHER_TYPES.get(code, f"unknown (code {code})")
        raise ScanError(f"{what}: found {name} voxels, expected one real number per voxel; convert the scan")
    voxel_type: np.dtype[np.generic] = np.dtype(order + _VOXEL_TYPES[code])
    if bits not in (0, 8 * voxel_type.itemsize):
        raise ScanError(
            f"{what}: found {bits} bits per voxel (bitpix), expected {8 * voxel_type.itemsize} for its type "
            f"{voxel_type.name}; the header is corrupt"
        )
    return voxel_type


def _offset(raw: bytes, order: str, what: str) -> int:
    offset = struct.unpack_from(f"{order}f", raw, 108)[0]
    if not (math.isfinite(offset) and FIRST_OFFSET <= offset < 1 << 31 and offset == int(offset)):
        raise ScanError(
            f"{what}: found a voxel data offset of {offset:.9g}, expected a whole number from {FIRST_OFFSET}; the "
            "header is corrupt"
        )
    return int(offset)


def _scaling(raw: bytes, order: str, what: str) -> tuple[float, float] | None:
    """Slope and intercept, where every reader takes them alike."""
    slope, intercept = struct.unpack_from(f"{order}2f", raw, 112)
    if math.isinf(slope) or math.isinf(intercept):
        raise ScanError(f"{what}: found an infinite intensity scaling, expected numbers; repair the header")
    # A slope of 0 means none; some writers put NaN for that.
    unscaled = slope == 0 or math.isnan(slope)
    if unscaled and (intercept == 0 or math.isnan(intercept)):
        return None
    if (slope, intercept) == (1, 0):
        return None
    too_small = abs(slope) <= _SMALLEST_SCALING or (slope == 1 and abs(intercept) <= _SMALLEST_SCALING)
    if unscaled or too_small or math.isnan(intercept):
        raise ScanError(
            f"{what}: found an intensity scaling of slope {slope:g} and intercept {intercept:g}, which readers take "
            "differently, expected slope 0 or 1 and intercept 0, or a scaling that takes effect; repair the header"
        )
    return slope, intercept


def _is_gzip(file: BinaryIO) -> bool:
    magic = file.read(2)
    file.seek(0)
    return magic == b"\x1f\x8b"
