"""MetaImage headers: which fields there may be, and what they state.

ITK's reader takes 1 mm where no spacing is stated, does not convert units, ignores intensity scaling, and writes
behind its arrays where a header has more dimensions than it provides for. Format:
https://itk.org/Wiki/MetaIO/Documentation
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import one_line
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io.grid import check_spacing
from masksam_deploy.io.header_text import (
    TextHeader,
    check_lines,
    data_file,
    geometry_of,
    header_lines,
    number,
    numbers,
    sizes,
)
from masksam_deploy.io.voxel_stream import Encoding, StoredVoxels

_LONGEST_LINE = 4096
_LONGEST_TEXT = 1 << 20
# Names as MetaIO spells them; it knows no other spelling. In the order of its documentation.
_OFFSETS = ("Offset", "Position", "Origin")
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_ARRAYS = (*_OFFSETS, "CenterOfRotation", "ElementSpacing", "ElementSize", "ImagePosition", "SequenceID")
_TRUTHS = (*_BYTE_ORDERS, "BinaryData", "CompressedData")
_NUMBERS = ("ElementMin", "ElementMax", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset")
_OTHERS = (
    "ObjectType",
    "ObjectSubType",
    "Comment",
    "TransformType",
    "NDims",
    "Name",
    "ID",
    "ParentID",
    "AcquisitionDate",
    "Color",
    "DistanceUnits",
    "AnatomicalOrientation",
    "CompressedDataSize",
    "CompressionLevel",
    "DimSize",
    "HeaderSize",
    "Modality",
    "ElementNumberOfChannels",
    "ElementNBits",
    "ElementType",
    "ElementDataFile",
)
_KNOWN = frozenset((*_MATRICES, *_ARRAYS, *_TRUTHS, *_NUMBERS, *_OTHERS))
_KNOWN_IN_ANY_CASE = {name.lower() for name in _KNOWN}
# SimpleITK writes DICOM tags, `0008|0060 = MR`, and what other formats state, `dim[0] = 3`, among the fields.
_UNKNOWN_NAME = re.compile(r"[!-9;<>-~]{1,128}")
_NAME_END = re.compile(r"[ \t:]")
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# What ITK is told of a header; the rest says nothing of type or place.
_FOR_ITK = (*_MATRICES, *_OFFSETS, "ElementSpacing", "ElementSize", "DimSize", "ElementType")


def read_meta_header(path: Path, what: str) -> TextHeader:
    """Judge the header of a `.mha` or `.mhd` file.

    Raises:
        ScanError: not MetaImage, or without a spacing, a unit or a data file that can be relied on.
        OSError: the file cannot be read.
    """
    header = header_lines(path, _names_the_data, what)
    if not header.ended:
        raise ScanError(
            f"{what}: found a header without ElementDataFile, expected a MetaImage with one; check the file, or copy "
            "it again"
        )
    check_lines(header.lines, what)
    fields = _fields(header.lines, what)
    if "NDims" not in fields or "DimSize" not in fields:
        raise ScanError(f"{what}: found something that is not a MetaImage, expected NDims and DimSize; check the file")
    dimensions = _dimensions(fields, what)
    _check_fields(fields, dimensions, what)
    geometry = _geometry(fields, dimensions, what)
    encoding = _encoding(fields, what)
    is_local = fields["ElementDataFile"] in ("LOCAL", "Local", "local")
    data = path if is_local else data_file(path, fields["ElementDataFile"], what)
    if not is_local:
        _check_end(path, len(header.head), what)
    voxels = StoredVoxels(
        path=data,
        start=len(header.head) if is_local else 0,
        encoding=encoding,
        voxel_type=_voxel_type(fields, what),
        size_xyz=geometry.size_xyz,
        head=header.head if is_local else b"",
        compressed_size=_compressed_size(fields, what) if encoding == "zlib" else None,
    )
    return TextHeader(data, voxels, geometry, _for_itk(fields, dimensions))


def _names_the_data(line: str) -> bool:
    name, equals, _ = line.partition("=")
    return bool(equals) and name.strip() == "ElementDataFile"


def _fields(lines: list[str], what: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    in_unknown = False
    for line in lines:
        name, equals, value = (part.strip(" \t") for part in line.partition("="))
        if not equals and in_unknown and _is_text(line):
            continue
        in_unknown = name not in _KNOWN
        if not equals or len(line) > (_LONGEST_TEXT if in_unknown else _LONGEST_LINE):
            raise ScanError(
                f"{what}: found the header line '{one_line(line[:1000], 60)}', expected a MetaImage with lines 'Name = "
                f"value' of at most {_LONGEST_LINE} letters; check the file"
            )
        if in_unknown and (name.lower() in _KNOWN_IN_ANY_CASE or not _UNKNOWN_NAME.fullmatch(name)):
            raise ScanError(
                f"{what}: found the header line '{one_line(line[:1000], 60)}', expected a field as MetaImage spells "
                "it; repair the header"
            )
        if not in_unknown and any(letter < " " and letter != "\t" for letter in value):
            raise ScanError(f"{what}: found control characters in the field {name}, expected text; repair the header")
        if name in fields:
            raise ScanError(
                f"{what}: found the field {one_line(name)} twice in the header, expected it once; repair the header"
            )
        fields[name] = value
    return fields


def _is_text(line: str) -> bool:
    """Whether a line can go on with an unknown field: SimpleITK writes DICOM texts with their line breaks."""
    first = _NAME_END.split(line.strip(" \t"), maxsplit=1)[0]
    return len(line) <= _LONGEST_TEXT and first.lower() not in _KNOWN_IN_ANY_CASE


def _dimensions(fields: dict[str, str], what: str) -> int:
    """3, or 4 with a last axis of one entry."""
    axes = sizes(fields["DimSize"], "DimSize", what)
    if fields["NDims"] != str(len(axes)):
        raise ScanError(
            f"{what}: found NDims '{one_line(fields['NDims'], 60)}' and {len(axes)} numbers in DimSize, expected as "
            "many numbers as dimensions; repair the header"
        )
    if len(axes) != 3 and not (len(axes) == 4 and axes[3] == 1):
        raise ScanError(
            f"{what}: found a {len(axes)}D image ({' x '.join(map(str, axes))}), expected one 3D scan of single "
            "numbers; extract one volume"
        )
    return len(axes)


def _check_fields(fields: dict[str, str], dimensions: int, what: str) -> None:
    """Refuse what would change values or places, and numbers that are none."""
    _check_units(fields, what)
    for name in _NUMBERS:
        if name in fields:
            numbers(fields[name], 1, name, what)
    for name in _ARRAYS:
        if name in fields:
            numbers(fields[name], dimensions, name, what)
    for name, expected in (
        ("ElementToIntensityFunctionSlope", 1.0),
        ("ElementToIntensityFunctionOffset", 0.0),
    ):
        if name in fields and number(fields[name]) != expected:
            raise ScanError(
                f"{what}: found {name} '{one_line(fields[name], 60)}', expected {expected:g}; convert the scan, e.g. "
                "to .nii.gz"
            )
    channels = fields.get("ElementNumberOfChannels", "1")
    if channels != "1":
        raise ScanError(
            f"{what}: found {one_line(channels, 60)} values per voxel (a colour or vector image), expected one; give a "
            "scan with one value per voxel"
        )
    for name in _TRUTHS:
        if fields.get(name, "true").lower() not in ("true", "false"):
            raise ScanError(f"{what}: found {name} '{one_line(fields[name], 60)}', expected True or False; repair it")


def _check_units(fields: dict[str, str], what: str) -> None:
    if fields.get("ObjectType", "Image") != "Image":
        raise ScanError(f"{what}: found ObjectType '{one_line(fields['ObjectType'], 60)}', expected Image; convert it")
    if fields.get("HeaderSize", "0") != "0":
        raise ScanError(f"{what}: found a HeaderSize, expected none; convert it, e.g. to .nii.gz")
    if fields.get("DistanceUnits", "mm").lower() not in ("mm", "?"):
        raise ScanError(f"{what}: found DistanceUnits other than mm, expected mm; rewrite the scan in mm")


def _geometry(fields: dict[str, str], dimensions: int, what: str) -> Geometry:
    size = sizes(fields["DimSize"], "DimSize", what)
    # MetaIO falls back to ElementSize, then to 1.
    stated = fields.get("ElementSpacing", fields.get("ElementSize"))
    if stated is None:
        raise ScanError(f"{what}: found no ElementSpacing with three numbers, expected it in mm; complete the header")
    spacing = numbers(stated, dimensions, "ElementSpacing", what)[:3]
    check_spacing(spacing, what)
    offset = _one_of(fields, _OFFSETS, [0.0] * dimensions, what)
    matrix = _one_of(fields, _MATRICES, list(np.eye(dimensions).ravel()), what)
    axes = np.array(matrix).reshape(dimensions, dimensions)
    if np.any(axes[:3, 3:]) or np.any(axes[3:, :3]):
        raise ScanError(f"{what}: found axes that turn into a fourth dimension, expected a 3D scan; extract one volume")
    # Row i of the matrix is the direction of axis i.
    steps = [tuple(float(v) * spacing[i] for v in axes[i, :3]) for i in range(3)]
    return geometry_of((size[0], size[1], size[2]), steps, (offset[0], offset[1], offset[2]))


def _one_of(fields: dict[str, str], names: tuple[str, ...], default: list[float], what: str) -> list[float]:
    """The numbers of the one field that has several names."""
    stated = [numbers(fields[name], len(default), name, what) for name in names if name in fields]
    if any(values != stated[0] for values in stated):
        raise ScanError(
            f"{what}: found different numbers in {' and '.join(name for name in names if name in fields)}, which mean "
            "the same, expected one statement; repair the header"
        )
    return stated[0] if stated else default


def _encoding(fields: dict[str, str], what: str) -> Encoding:
    compressed = fields.get("CompressedData", "False").lower() == "true"
    if fields.get("BinaryData", "True").lower() == "true":
        return "zlib" if compressed else "raw"
    if compressed:
        raise ScanError(f"{what}: found voxels both written out and compressed, expected one; convert it")
    return "text"


def _compressed_size(fields: dict[str, str], what: str) -> int | None:
    text = fields.get("CompressedDataSize")
    if text is None:
        return None
    value = number(text)
    if not (0 < value < 1 << 53 and value == int(value)):
        raise ScanError(
            f"{what}: found CompressedDataSize '{one_line(text, 60)}', expected a number of bytes; repair the header"
        )
    return int(value)


def _voxel_type(fields: dict[str, str], what: str) -> np.dtype[np.generic]:
    code = _TYPES.get(fields.get("ElementType", ""))
    if code is None:
        name = one_line(fields.get("ElementType", "none"), 60)
        raise ScanError(f"{what}: found ElementType '{name}', expected one real number per voxel; convert the scan")
    orders = {fields[name].lower() for name in _BYTE_ORDERS if name in fields}
    if len(orders) == 2:
        raise ScanError(f"{what}: found {' and '.join(_BYTE_ORDERS)} that differ, expected one; repair the header")
    voxel_type: np.dtype[np.generic] = np.dtype((">" if orders == {"true"} else "<") + code)
    if "ElementNBits" in fields and number(fields["ElementNBits"]) != 8 * voxel_type.itemsize:
        raise ScanError(
            f"{what}: found ElementNBits '{one_line(fields['ElementNBits'], 60)}', expected {8 * voxel_type.itemsize}; "
            "repair the header"
        )
    return voxel_type


def _check_end(path: Path, end: int, what: str) -> None:
    with path.open("rb") as file:
        file.seek(end)
        behind = file.read(_LONGEST_LINE)
    if behind.strip():
        raise ScanError(
            f"{what}: found header lines behind ElementDataFile, which readers ignore, expected it last; move it there"
        )


def _for_itk(fields: dict[str, str], dimensions: int) -> bytes:
    lines = ["ObjectType = Image", f"NDims = {dimensions}", "BinaryData = True", "CompressedData = False"]
    order = next((fields[name] for name in _BYTE_ORDERS if name in fields), "False")
    lines += [f"BinaryDataByteOrderMSB = {order}"]
    lines += [f"{name} = {fields[name]}" for name in _FOR_ITK if name in fields]
    return "\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode("latin-1")
