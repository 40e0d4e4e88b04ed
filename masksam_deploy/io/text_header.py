"""What ITK does not tell about NRRD and MetaImage files, read from their text headers.

ITK accepts damaged compressed voxels (it ignores the checksums), takes 1 mm where no spacing is stated and
does not convert units. Formats: https://teem.sourceforge.net/nrrd/format.html and
https://itk.org/Wiki/MetaIO/Documentation
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masksam_deploy.errors import ScanError
from masksam_deploy.io.grid import check_spacing
from masksam_deploy.io.nifti_header import MAX_DEFLATE_RATIO
from masksam_deploy.text import one_line, shown

_HEADER_LIMIT = 1 << 16
_CHUNK = 1 << 20
_GZIP_OR_ZLIB = 47
# The spaces that ITK converts to LPS; it takes every other one as LPS without a word.
_NRRD_SPACES = (
    "left-posterior-superior",
    "right-anterior-superior",
    "left-anterior-superior",
    "lps",
    "ras",
    "las",
)
_NRRD_ENCODINGS: dict[str, Literal["raw", "deflate", "text"]] = {
    "raw": "raw",
    "gzip": "deflate",
    "gz": "deflate",
    "txt": "text",
    "text": "text",
    "ascii": "text",
}


@dataclass(frozen=True)
class VoxelData:
    """Where the voxels of a file lie.

    Attributes:
        path: the file that holds them: the header's own, or the one it names.
        start: offset of their first byte.
        encoding: plain bytes, compressed, or numbers written out.
    """

    path: Path
    start: int
    encoding: Literal["raw", "deflate", "text"]


def read_nrrd_header(path: Path, what: str) -> VoxelData:
    """Judge the header of a `.nrrd` or `.nhdr` file.

    Raises:
        ScanError: not NRRD, or without an orientation, a unit or a data file that can be relied on.
        OSError: the file cannot be read.
    """
    lines, end = _header_lines(path, stop=lambda line: not line)
    if not lines or not lines[0].startswith("NRRD000"):
        raise ScanError(f"{what}: found something that is not NRRD, expected an NRRD file; check the file")
    fields = _fields(lines[1:], ":")
    _check_three_axes(fields.get("sizes", ""), what)
    space = one_line(fields.get("space", "none"))
    if space.lower() not in _NRRD_SPACES or "space directions" not in fields or "space origin" not in fields:
        missing = [key for key in ("space directions", "space origin") if key not in fields]
        raise ScanError(
            f"{what}: found space '{space}'{''.join(f' and no {key}' for key in missing)}, expected "
            "left-posterior-superior, right-anterior-superior or left-anterior-superior with directions and origin; "
            "complete the header"
        )
    if any(unit != "mm" for unit in fields.get("space units", "").replace('"', " ").split()):
        raise ScanError(f"{what}: found space units other than mm, expected mm; rewrite the scan in mm")
    encoding = _NRRD_ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        name = one_line(fields.get("encoding", "none"))
        raise ScanError(f"{what}: found encoding '{name}', expected raw, gzip or ascii; convert it, e.g. to .nii.gz")
    if any(fields.get(key, "0") != "0" for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise ScanError(f"{what}: found a line or byte skip, expected none; convert it, e.g. to .nii.gz")
    data = fields.get("data file", fields.get("datafile"))
    if data is not None:
        return VoxelData(_data_file(path, data, what), 0, encoding)
    if end is None:
        raise ScanError(f"{what}: found a header without an end, expected voxels after it; copy the file again")
    return VoxelData(path, end, encoding)


def read_meta_header(path: Path, what: str) -> VoxelData:
    """Judge the header of a `.mha` or `.mhd` file.

    Raises:
        ScanError: not MetaImage, or without a spacing, a unit or a data file that can be relied on.
        OSError: the file cannot be read.
    """
    lines, end = _header_lines(path, stop=lambda line: line.replace(" ", "").startswith("ElementDataFile="))
    fields = _fields(lines, "=")
    if "NDims" not in fields or "DimSize" not in fields:
        raise ScanError(f"{what}: found something that is not a MetaImage, expected NDims and DimSize; check the file")
    if end is None:
        raise ScanError(f"{what}: found a header without ElementDataFile, expected one; copy the file again")
    _check_three_axes(fields["DimSize"], what)
    check_spacing(_meta_spacing(fields, what), what)
    if fields.get("HeaderSize", "0") != "0":
        raise ScanError(f"{what}: found a HeaderSize, expected none; convert it, e.g. to .nii.gz")
    if fields.get("DistanceUnits", "mm").lower() not in ("mm", "?"):
        raise ScanError(f"{what}: found DistanceUnits other than mm, expected mm; rewrite the scan in mm")
    encoding: Literal["raw", "deflate", "text"] = "raw"
    if fields.get("BinaryData", "True").lower() != "true":
        encoding = "text"
    elif fields.get("CompressedData", "False").lower() == "true":
        encoding = "deflate"
    if fields["ElementDataFile"].upper() == "LOCAL":
        return VoxelData(path, end, encoding)
    return VoxelData(_data_file(path, fields["ElementDataFile"], what), 0, encoding)


def check_data_size(data: VoxelData, expected: int, what: str) -> None:
    """Check the size of the data file before anything is allocated, so that a lying header costs nothing.

    Raises:
        ScanError: it does not fit `expected` bytes of voxels.
        OSError: the data file cannot be read.
    """
    stored = max(data.path.stat().st_size - data.start, 0)
    # A written-out number takes at least a digit and a separator, and is at most 8 bytes in memory.
    growth = {"raw": 1, "deflate": MAX_DEFLATE_RATIO, "text": 4}[data.encoding]
    if stored * growth < expected:
        raise _wrong_size(what, f"at most {stored * growth}", expected)
    # A transfer in text mode adds bytes and shifts every voxel behind them.
    if data.encoding == "raw" and stored != expected:
        raise _wrong_size(what, str(stored), expected)


def check_data(data: VoxelData, expected: int, what: str) -> None:
    """Check that compressed voxels are all there and undamaged, in constant memory.

    Raises:
        ScanError: they are not.
        OSError: the data file cannot be read.
    """
    if data.encoding == "deflate":
        length = _inflated_length(data, what)
        if length != expected:
            raise _wrong_size(what, str(length), expected)


def _inflated_length(data: VoxelData, what: str) -> int:
    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
    length = 0
    try:
        with data.path.open("rb") as file:
            file.seek(data.start)
            while not inflate.eof and (chunk := file.read(_CHUNK)):
                while chunk and not inflate.eof:
                    length += len(inflate.decompress(chunk, _CHUNK))
                    chunk = inflate.unconsumed_tail
    except zlib.error as error:
        reason = one_line(str(error))
        raise ScanError(
            f"{what}: found damaged compressed voxels ({reason}), expected a whole file; copy it again"
        ) from error
    if not inflate.eof:
        raise ScanError(f"{what}: found compressed voxels that break off, expected a whole file; copy it again")
    return length


def _header_lines(path: Path, stop: Callable[[str], bool]) -> tuple[list[str], int | None]:
    """The lines up to and including the one where `stop`, and the offset behind it (None without one)."""
    with path.open("rb") as file:
        head = file.read(_HEADER_LIMIT)
    lines: list[str] = []
    start = 0
    while (end := head.find(b"\n", start)) >= 0:
        line = head[start:end].decode("utf-8", "replace").strip()
        lines.append(line)
        start = end + 1
        if stop(line):
            return lines, start
    # A detached header may end without a line break, or an NRRD one without the empty line.
    lines.append(head[start:].decode("utf-8", "replace").strip())
    return lines, (len(head) if stop(lines[-1]) and lines[-1] else None)


def _fields(lines: list[str], separator: str) -> dict[str, str]:
    pairs = (line.split(separator, 1) for line in lines if separator in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def _check_three_axes(sizes: str, what: str) -> None:
    axes = sizes.split()
    while len(axes) > 3 and axes[-1] == "1":
        axes.pop()
    if len(axes) != 3:
        raise ScanError(
            f"{what}: found a {len(axes)}D image ({one_line(' x '.join(axes))}), expected one 3D scan of single "
            "numbers; extract one volume"
        )


def _meta_spacing(fields: dict[str, str], what: str) -> list[float]:
    # MetaIO falls back to ElementSize, then to 1.
    text = fields.get("ElementSpacing", fields.get("ElementSize", ""))
    try:
        spacing = [float(word) for word in text.split()]
    except ValueError:
        spacing = []
    if len(spacing) < 3:
        raise ScanError(f"{what}: found no ElementSpacing with three numbers, expected it in mm; complete the header")
    return spacing[:3]


def _data_file(header: Path, name: str, what: str) -> Path:
    if name.upper().startswith("LIST") or "%" in name:
        raise ScanError(f"{what}: found voxels spread over several files, expected one; convert it, e.g. to .nii.gz")
    path = header.parent / name
    if not path.is_file():
        raise ScanError(f"{what}: found no voxels, expected them in {shown(path)}; copy that file too")
    return path


def _wrong_size(what: str, found: str, expected: int) -> ScanError:
    return ScanError(
        f"{what}: found {found} bytes of voxels, expected {expected} as the header says; the file is cut off or "
        "corrupt, copy it again"
    )
