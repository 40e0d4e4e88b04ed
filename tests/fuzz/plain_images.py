"""Plain readers of NIfTI, NRRD and MetaImage files, to compare with; nothing here is of the code under test."""

from __future__ import annotations

import gzip
import re
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Expected = tuple[NDArray[np.float32], NDArray[np.float64]]

NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
NRRD_TYPES = {"uchar": "u1", "int8": "i1", "short": "i2", "unsigned short": "u2", "int": "i4", "float": "f4"}
NRRD_TYPES |= {"double": "f8", "uint": "u4", "int64": "i8", "uint64": "u8"}
META_TYPES = {"UCHAR": "u1", "CHAR": "i1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "FLOAT": "f4", "DOUBLE": "f8"}
META_TYPES |= {"UINT": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "LONG": "i4", "ULONG": "u4"}
# Where ITK no longer takes a NIfTI sform, found by trying.
ITK_SKEW = 1.2e-4
_FAILURES = (
    ArithmeticError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    ValueError,
    struct.error,
    zlib.error,
)


def ways(name: str, content: bytes) -> list[Expected]:
    """All that a file may rightly be read as.

    More than one only for a NIfTI file whose two forms differ and whose sform is skewed as much as ITK just tolerates.
    """
    readings = (expected(name, content, limit) for limit in (0.8 * ITK_SKEW, 1.5 * ITK_SKEW))
    return [reading for reading in readings if reading is not None]


def expected(name: str, content: bytes, skew: float = ITK_SKEW) -> Expected | None:
    """What plain parsing finds in a file.

    Args:
        name: its suffix tells the format.
        content: the whole file.
        skew: beyond it, the sform of a NIfTI file gives way to the qform.

    Returns:
        Values `[Z, Y, X]` as float32 and the 3x4 matrix from (x, y, z, 1) to LPS mm; None if this is no readable scan,
        so that accepting it is a fault.
    """
    try:
        with np.errstate(all="ignore"):
            if name.endswith((".nii", ".nii.gz")):
                return _read_nifti(content, name.endswith(".gz"), skew)
            return _read_nrrd(content) if name.endswith(".nrrd") else _read_meta(content)
    except _FAILURES:
        return None


def agrees(values_zyx: NDArray[np.float32], affine_lps: NDArray[np.float64], wanted: Expected) -> bool:
    """Whether an array and a 3x4 affine are the expected ones, but for rounding."""
    values, affine = wanted
    if values_zyx.shape != values.shape or not np.allclose(values_zyx, values, rtol=1e-5, atol=0):
        return False
    corner = np.array([*(n - 1 for n in values.shape[::-1]), 1.0])
    step = np.linalg.norm(affine[:, :3], axis=0).min()
    shifts = (affine_lps - affine) @ np.array([[0, 0, 0, 1.0], corner]).T
    return bool(np.abs(shifts).max() <= 0.1 * step)


def rotation_matrix(a: float, b: float, c: float, d: float) -> NDArray[np.float64]:
    """The 3x3 rotation of a unit quaternion."""
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _read_nifti(content: bytes, may_be_gzip: bool, skew: float) -> Expected | None:
    if may_be_gzip and content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    order = "<" if struct.unpack_from("<i", content)[0] == 348 else ">"
    if struct.unpack_from(f"{order}i", content)[0] != 348 or content[344:348] != b"n+1\0":
        return None
    dim = struct.unpack_from(f"{order}8h", content, 40)
    size = dim[1:4]
    if not 3 <= dim[0] <= 7 or min(size) < 1 or any(n not in (0, 1) for n in dim[4 : dim[0] + 1]):
        return None
    dtype = np.dtype(order + NIFTI_TYPES[struct.unpack_from(f"{order}h", content, 70)[0]])
    offset, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
    stored = np.frombuffer(content[int(offset) :], dtype)
    values = stored.astype(np.float64)
    if slope != 0 and np.isfinite(slope):
        values = values * slope + intercept
    return values.astype(np.float32).reshape(size[::-1]), _nifti_affine(content, order, skew)


def _nifti_affine(content: bytes, order: str, skew: float) -> NDArray[np.float64]:
    """The form that ITK takes: the sform if it refers to the scanner at right angles, or is the only one."""
    qfac, *spacing = struct.unpack_from(f"{order}4f", content, 76)
    qcode, scode = struct.unpack_from(f"{order}2h", content, 252)
    affine: NDArray[np.float64] = np.array(struct.unpack_from(f"{order}12f", content, 280)).reshape(3, 4)
    unit = affine[:, :3] / np.linalg.norm(affine[:, :3], axis=0)
    is_sheared = np.abs(unit.T @ unit - np.eye(3)).max() > skew
    if scode <= 0 or (qcode > 0 and (scode != 1 or is_sheared)):
        b, c, d, *origin = struct.unpack_from(f"{order}6f", content, 256)
        rest = 1 - (b * b + c * c + d * d)
        a = np.sqrt(rest) if rest >= 1e-7 else 0.0
        quaternion = np.array([a, b, c, d]) / np.linalg.norm([a, b, c, d])
        affine = np.column_stack([rotation_matrix(*quaternion) * spacing * [1, 1, -1 if qfac < 0 else 1], origin])
    turned: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0]) @ affine
    return turned


def _once(pairs: list[tuple[str, str]]) -> dict[str, str]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is there twice")
    return fields


def _read_nrrd(content: bytes) -> Expected | None:
    head, _, data = re.split(rb"(\r?\n\r?\n)", content, maxsplit=1)
    lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    if not lines[0].startswith("NRRD000"):
        return None
    fields = _once(
        [
            (key.lower().replace("datafile", "data file"), value.strip())
            for key, _, value in (line.partition(":") for line in lines[1:] if not line.startswith("#"))
            if not value.startswith("=")
        ]
    )
    if "data file" in fields:
        return None
    order = ">" if fields.get("endian", "").lower() == "big" else "<"
    dtype = np.dtype(order + NRRD_TYPES[fields["type"].lower()])
    encoding = fields["encoding"].lower()
    values = _plain_values(data, "gzip" if encoding == "gzip" else "text" if encoding == "ascii" else "raw", dtype)
    signs = {"l": (1, 1), "r": (-1, -1)}[fields["space"][0].lower()]
    vectors = [[float(v) for v in part.split(",")] for part in re.findall(r"\(([^)]*)\)", fields["space directions"])]
    origin = [float(v) for v in fields["space origin"].strip("()").split(",")]
    affine = np.diag([*signs, 1.0]) @ np.column_stack([np.array(vectors).T, origin])
    size = [int(n) for n in fields["sizes"].split()]
    return values.reshape(size[::-1]), affine


def _read_meta(content: bytes) -> Expected | None:
    head, _, data = re.split(
        rb"(ElementDataFile[ \t]*=[ \t]*LOCAL[ \t]*\r?\n)", content, maxsplit=1, flags=re.IGNORECASE
    )
    lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")[:-1]
    fields = _once([(key.strip(), value.strip()) for key, _, value in (line.partition("=") for line in lines)])
    order = (
        ">" if fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "")).lower() == "true" else "<"
    )
    dtype = np.dtype(order + META_TYPES[fields["ElementType"].removeprefix("MET_")])
    kind = "zlib" if fields.get("CompressedData", "").lower() == "true" else "raw"
    if fields.get("BinaryData", "true").lower() == "false":
        kind = "text"
    values = _plain_values(data, kind, dtype)
    spacing = [float(v) for v in fields.get("ElementSpacing", fields.get("ElementSize", "")).split()]
    matrices = [fields[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in fields]
    matrix = np.array([float(v) for v in matrices[0].split()]).reshape(3, 3) if matrices else np.eye(3)
    offsets = [fields[key] for key in ("Offset", "Position", "Origin") if key in fields]
    offset = [float(v) for v in offsets[0].split()] if offsets else [0.0] * 3
    size = [int(n) for n in fields["DimSize"].split()]
    return values.reshape(size[::-1]), np.column_stack([matrix.T * spacing, offset])


def _plain_values(data: bytes, kind: str, dtype: np.dtype[np.generic]) -> NDArray[np.float32]:
    if kind == "text":
        if dtype.kind == "f":
            return np.array([float(word) for word in data.split()]).astype(np.float32)
        return np.array([int(word) for word in data.split()]).astype(np.float32)
    if kind == "gzip":
        data = gzip.decompress(data)
    elif kind == "zlib":
        inflate = zlib.decompressobj()
        data = inflate.decompress(data)
        if not inflate.eof or inflate.unused_data:
            raise ValueError("not one whole stream")
    return np.frombuffer(data, dtype).astype(np.float32)
