"""NRRD headers: which fields there may be, and what they state.

ITK's reader overruns its memory on some fields, and takes every space that it does not know as LPS. Format:
https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import one_line
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io.header_text import (
    LONGEST_HEADER,
    HeaderLines,
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

_MAGIC = re.compile(r"NRRD000[1-5]")
_LONGEST_LINE = 1 << 20
_LONGEST_FIELD = 1024
_ALIASES = {
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
    "blocksize": "block size",
    "byteskip": "byte skip",
    "centers": "centerings",
    "datafile": "data file",
    "lineskip": "line skip",
    "oldmax": "old max",
    "oldmin": "old min",
    "sampleunits": "sample units",
}
_FIELDS = frozenset(_ALIASES.values()) | {
    "content",
    "dimension",
    "encoding",
    "endian",
    "kinds",
    "labels",
    "max",
    "measurement frame",
    "min",
    "number",
    "sizes",
    "space",
    "space dimension",
    "space directions",
    "space origin",
    "space units",
    "spacings",
    "thicknesses",
    "type",
    "units",
}
# The spaces that can be turned into LPS; axes of every other one mean nothing in a patient.
_SPACES = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "txt": "text",
    "text": "text",
    "ascii": "text",
}
_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPE_NAMES = {name: code for code, names in _TYPES.items() for name in names.split(", ")}
_VECTOR = re.compile(r"\(([^()]*)\)")
_SPATIAL_KINDS = {"domain", "space", "none", "???"}
_CENTERINGS = {"cell", "node", "none", "???"}
# What ITK is told of a header; the rest says nothing of type or place.
_FOR_ITK = ("type", "dimension", "space", "sizes", "space directions", "space origin", "kinds", "centerings")


def read_nrrd_header(path: Path, what: str) -> TextHeader:
    """Judge the header of a `.nrrd` or `.nhdr` file.

    Raises:
        ScanError: not NRRD, or without an orientation, a unit or a data file that can be relied on.
        OSError: the file cannot be read.
    """
    header = header_lines(path, lambda line: not line, what)
    if not header.lines or not _MAGIC.fullmatch(header.lines[0]):
        raise ScanError(f"{what}: found something that is not NRRD, expected an NRRD file; check the file")
    check_lines(header.lines, what)
    if header.is_cut:
        raise ScanError(f"{what}: found a header beyond {LONGEST_HEADER} bytes, expected less; check the file")
    fields = _fields(header.lines[1:], what)
    _check_three_axes(fields, what)
    _check_unused(fields, what)
    geometry = _geometry(fields, what)
    encoding = _encoding(fields, what)
    voxel_type = _voxel_type(fields, encoding, what)
    voxels = _voxels(path, header, fields.get("data file"), what)
    return TextHeader(
        path=voxels[0],
        voxels=StoredVoxels(
            path=voxels[0],
            start=voxels[1],
            encoding=encoding,
            voxel_type=voxel_type,
            size_xyz=geometry.size_xyz,
            head=header.head if voxels[1] else b"",
        ),
        geometry=geometry,
        for_itk=_for_itk(fields),
    )


def _voxels(path: Path, header: HeaderLines, data: str | None, what: str) -> tuple[Path, int]:
    """The file with the voxels, and where they begin."""
    if data is not None:
        return data_file(path, data, what), 0
    if not header.ended:
        raise ScanError(f"{what}: found a header without an end, expected voxels after it; copy the file again")
    return path, len(header.head)


def _fields(lines: list[str], what: str) -> dict[str, str]:
    """Known fields by their full names; key/value pairs and comments are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if len(line) > _LONGEST_LINE:
            raise ScanError(f"{what}: found a header line beyond {_LONGEST_LINE} bytes, expected less; check the file")
        if not line or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if colon and name and value.startswith("="):
            continue
        field = _ALIASES.get(name.lower(), name.lower())
        if field not in _FIELDS and ":=" in value:
            continue  # a key with a colon of its own
        if field not in _FIELDS or (value and value[0] not in " \t"):
            raise ScanError(
                f"{what}: found the header line '{one_line(line, 60)}', expected a field of NRRD; repair the header"
            )
        if len(value) > _LONGEST_FIELD or any(letter < " " and letter != "\t" for letter in value):
            raise ScanError(
                f"{what}: found an over-long or unprintable value in the header's field {field}, expected at most "
                f"{_LONGEST_FIELD} letters; repair the header"
            )
        if field in fields:
            raise ScanError(f"{what}: found the field {field} twice in the header, expected it once; repair the header")
        fields[field] = value.strip()
    return fields


def _check_three_axes(fields: dict[str, str], what: str) -> None:
    axes = sizes(fields.get("sizes", ""), "sizes", what)
    if fields.get("dimension") != str(len(axes)):
        raise ScanError(
            f"{what}: found dimension '{one_line(fields.get('dimension', 'none'), 60)}' and {len(axes)} sizes, "
            "expected as many sizes as dimensions; repair the header"
        )
    if len(axes) != 3:
        raise ScanError(
            f"{what}: found a {len(axes)}D image ({' x '.join(map(str, axes))}), expected one 3D scan of single "
            "numbers; extract one volume"
        )
    for field, known in (("kinds", _SPATIAL_KINDS), ("centerings", _CENTERINGS)):
        words = fields.get(field, "none none none").lower().split()
        if len(words) != 3 or not known.issuperset(words):
            raise ScanError(
                f"{what}: found {field} '{one_line(fields[field], 60)}', expected one of {', '.join(sorted(known))} "
                "for each of three axes; extract one volume, or repair the header"
            )


def _check_unused(fields: dict[str, str], what: str) -> None:
    """Refuse fields that would change values or places, if they say anything."""
    for field in ("line skip", "byte skip"):
        if fields.get(field, "0") != "0":
            raise ScanError(f"{what}: found a line or byte skip, expected none; convert it, e.g. to .nii.gz")
    for field in ("old min", "old max", "block size"):
        if field in fields:
            raise ScanError(f"{what}: found the field {field}, expected none; convert it, e.g. to .nii.gz")
    for field in ("spacings", "axis mins", "axis maxs"):
        if any(word.lower() != "nan" for word in fields.get(field, "").split()):
            raise ScanError(
                f"{what}: found the field {field} beside space directions, expected one statement of the grid; remove "
                "it from the header"
            )
    for field in ("min", "max"):
        if field in fields and not math.isfinite(number(fields[field])):
            raise ScanError(f"{what}: found {field} '{one_line(fields[field], 60)}', expected a number; repair it")
    count = math.prod(sizes(fields["sizes"], "sizes", what))
    if fields.get("number", str(count)) != str(count):
        raise ScanError(f"{what}: found number '{one_line(fields['number'], 60)}', expected {count}; repair the header")


def _geometry(fields: dict[str, str], what: str) -> Geometry:
    space = fields.get("space", "none")
    if space.lower() not in _SPACES or "space directions" not in fields or "space origin" not in fields:
        missing = [key for key in ("space directions", "space origin") if key not in fields]
        raise ScanError(
            f"{what}: found space '{one_line(space, 60)}'{''.join(f' and no {key}' for key in missing)}, expected "
            "left-posterior-superior, right-anterior-superior or left-anterior-superior with directions and origin; "
            "complete the header"
        )
    if fields.get("space dimension", "3") != "3":
        raise ScanError(f"{what}: found a space dimension beside a space of 3, expected 3; repair the header")
    for field in ("space units", "units"):
        if any(unit not in ("mm", "???") for unit in fields.get(field, "").replace('"', " ").split()):
            raise ScanError(f"{what}: found {field} other than mm, expected mm; rewrite the scan in mm")
    signs = _SPACES[space.lower()]
    steps = _vectors(fields["space directions"], 3, "space directions", what)
    (origin,) = _vectors(fields["space origin"], 1, "space origin", what)
    if "measurement frame" in fields:
        _vectors(fields["measurement frame"], 3, "measurement frame", what)
    size = sizes(fields["sizes"], "sizes", what)
    turned = [tuple(sign * v for sign, v in zip(signs, vector, strict=True)) for vector in (*steps, origin)]
    x, y, z = turned[3]
    return geometry_of((size[0], size[1], size[2]), turned[:3], (x, y, z))


def _vectors(text: str, count: int, name: str, what: str) -> list[list[float]]:
    found = _VECTOR.findall(text)
    if len(found) != count or _VECTOR.sub("", text).strip():
        raise ScanError(
            f"{what}: found {name} '{one_line(text, 60)}', expected {count} times (x,y,z) in numbers; repair the header"
        )
    return [numbers(_spaced(vector), 3, name, what) for vector in found]


def _spaced(vector: str) -> str:
    """Commas become spaces, if each stands between two numbers."""
    parts = vector.split(",")
    return " ".join(parts) if len(parts) == 3 and all(len(part.split()) == 1 for part in parts) else ""


def _encoding(fields: dict[str, str], what: str) -> Encoding:
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        name = one_line(fields.get("encoding", "none"), 60)
        raise ScanError(f"{what}: found encoding '{name}', expected raw, gzip or ascii; convert it, e.g. to .nii.gz")
    return encoding


def _voxel_type(fields: dict[str, str], encoding: Encoding, what: str) -> np.dtype[np.generic]:
    code = _TYPE_NAMES.get(" ".join(fields.get("type", "").lower().split()))
    if code is None:
        name = one_line(fields.get("type", "none"), 60)
        raise ScanError(f"{what}: found voxels of type '{name}', expected one real number per voxel; convert the scan")
    endian = fields.get("endian", "").lower()
    needed = encoding != "text" and not code.endswith("1")
    if endian not in ("little", "big") and (needed or "endian" in fields):
        raise ScanError(
            f"{what}: found endian '{one_line(fields.get('endian', 'none'), 60)}', expected little or big; complete "
            "the header"
        )
    return np.dtype((">" if endian == "big" else "<") + code)


def _for_itk(fields: dict[str, str]) -> bytes:
    kept = {name: fields[name] for name in _FOR_ITK if name in fields}
    kept |= {"endian": fields.get("endian", "little"), "encoding": "raw"}
    lines = ["NRRD0005", *(f"{name}: {value}" for name, value in kept.items()), "", ""]
    return "\n".join(lines).encode("latin-1")
