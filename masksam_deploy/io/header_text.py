"""Text headers, line by line and within limits, and the numbers in them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io.voxel_stream import StoredVoxels

# Slicer writes segmentations and diffusion images whose headers exceed 64 KiB.
LONGEST_HEADER = 8 << 20
_USUAL_HEADER = 1 << 16
_MOST_LINES = 100_000
_LONGEST_NUMBER = 64
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_LONGEST_NAME = 255


@dataclass(frozen=True)
class TextHeader:
    """A judged header of an NRRD or MetaImage file.

    Attributes:
        path: the file that holds the voxels: the header's own, or the one it names.
        voxels: where they lie.
        geometry: the grid that the header states.
        for_itk: a header with the same type and grid and nothing else, whose voxels would follow it.
    """

    path: Path
    voxels: StoredVoxels
    geometry: Geometry
    for_itk: bytes


@dataclass(frozen=True)
class HeaderLines:
    """The lines of a header, and where it ends.

    Attributes:
        head: the bytes up to and including the last line.
        lines: decoded byte by byte (Latin-1), without line breaks.
        ended: whether the line that ends a header was there.
        is_cut: whether there is more of the file than a header may have.
    """

    head: bytes
    lines: list[str]
    ended: bool
    is_cut: bool


def header_lines(path: Path, is_last: Callable[[str], bool], what: str) -> HeaderLines:
    """The lines up to and including the one that `is_last`, or all of them.

    Raises:
        ScanError: too many lines.
        OSError: the file cannot be read.
    """
    found = HeaderLines(b"", [], False, True)
    for most in (_USUAL_HEADER, LONGEST_HEADER):
        if found.is_cut:
            with path.open("rb") as file:
                found = _lines(file.read(most + 1), most, is_last, what)
    return found


def _lines(start: bytes, most: int, is_last: Callable[[str], bool], what: str) -> HeaderLines:
    lines: list[str] = []
    end = 0
    is_cut = len(start) > most
    for line, after in _split(start):
        if is_cut and after == len(start):
            break  # a part of a line
        if len(lines) == _MOST_LINES:
            raise ScanError(f"{what}: found a header of more than {_MOST_LINES} lines, expected fewer; check the file")
        lines.append(line)
        end = after
        if is_last(line):
            return HeaderLines(start[:end], lines, True, False)
    return HeaderLines(start[:end], lines, False, is_cut)


def check_lines(lines: list[str], what: str) -> None:
    """Refuse lines that readers end at different places.

    Raises:
        ScanError: one holds a NUL or a carriage return.
    """
    if any("\0" in line or "\r" in line for line in lines):
        raise ScanError(
            f"{what}: found a NUL or a carriage return inside a line of its header, expected text; check the file"
        )


def numbers(text: str, count: int, name: str, what: str) -> list[float]:
    """Exactly `count` finite numbers with white space between them.

    Raises:
        ScanError: it is something else.
    """
    words = text.split()
    values = [number(word) for word in words[: count + 1]]
    if len(words) != count or not all(map(math.isfinite, values)):
        raise ScanError(
            f"{what}: found {name} '{one_line(text, 60)}', expected {count} finite numbers; repair the header"
        )
    return values


def number(word: str) -> float:
    """A decimal number; NaN for anything else."""
    if len(word) > _LONGEST_NUMBER or not _NUMBER.fullmatch(word):
        return math.nan
    return float(word)


def sizes(text: str, name: str, what: str) -> list[int]:
    """Positive whole numbers with white space between them.

    Raises:
        ScanError: it is something else.
    """
    words = text.split()
    if not 1 <= len(words) <= 16 or not all(_WHOLE.fullmatch(word) and int(word) > 0 for word in words):
        raise ScanError(f"{what}: found {name} '{one_line(text, 60)}', expected 3 positive sizes; repair the header")
    return [int(word) for word in words]


def geometry_of(
    size_xyz: tuple[int, int, int], steps_lps: list[tuple[float, ...]], origin_lps: tuple[float, float, float]
) -> Geometry:
    """The grid with one step in mm along each axis."""
    x, y, z = (math.sqrt(sum(v * v for v in step)) for step in steps_lps)
    spacing = (x, y, z)
    return Geometry(
        size_xyz=size_xyz,
        spacing_xyz=spacing,
        origin_lps=origin_lps,
        # A step of no length is refused by its spacing.
        direction_lps=tuple(
            step[row] / length if length > 0 else 0.0
            for row in range(3)
            for step, length in zip(steps_lps, spacing, strict=True)
        ),
    )


def data_file(header: Path, name: str, what: str) -> Path:
    """The file with the voxels of a detached header, whose name is decoded byte by byte: in its folder or below.

    Raises:
        ScanError: the name leads elsewhere, or not to a file.
        OSError: the system cannot look.
    """
    if name.upper().startswith("LIST") or "%" in name:
        raise ScanError(f"{what}: found voxels spread over several files, expected one; convert it, e.g. to .nii.gz")
    has_controls = any(letter < " " or letter == "\x7f" for letter in name)
    name = os.fsdecode(name.encode("latin-1"))
    windows = PureWindowsPath(name)  # knows both kinds of separators, drives and shares
    if not name or len(name) > _LONGEST_NAME or windows.anchor or ".." in windows.parts or has_controls:
        raise ScanError(
            f"{what}: found voxels in '{one_line(name, 60)}', expected a file in the header's own folder; put it there "
            "and correct the header"
        )
    path = header.parent / name
    if not path.is_file():
        raise ScanError(f"{what}: found no voxels, expected them in {shown(path)}; copy that file too")
    return path


def _split(content: bytes) -> Iterator[tuple[str, int]]:
    """Lines without their line breaks, and the offsets behind those."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        after = len(content) if end < 0 else end + 1
        yield content[start:after].removesuffix(b"\n").removesuffix(b"\r").decode("latin-1"), after
        start = after
