"""A folder with one DICOM series: which files are its slices, and whether they belong together.

What one file says is in `dicom_header.py`, its pixels in `dicom_pixels.py`, and where slices lie in `dicom_stack.py`.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import NOT_UTF8, is_utf8, one_line, shown
from masksam_deploy.base.volume import Array, Geometry
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.dicom_header import DicomHeader, Tag, media_storage_class
from masksam_deploy.io.dicom_pixels import check_readable, decode_plane
from masksam_deploy.io.dicom_stack import Slice, stack
from masksam_deploy.io.grid import check_grid

_PREAMBLE = 128
_ONE_FRAME = re.compile(r"(\+?0*[01])?")
_IMAGE_SUFFIXES = ("", ".dcm", ".dicom", ".ima", ".img")
_JUNK = frozenset(["dicomdir", "thumbs.db", "desktop.ini"])
"""What discs and file managers leave in every folder."""
_MOST_FILES = 10_000
"""Of a subfolder: so many are looked through for slices."""
# Objects that carry a grid or refer to one but are not a scan (DICOM PS3.4 B.5).
_NOT_A_SCAN = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG (segmentation)",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG (label map segmentation)",
    "1.2.840.10008.5.1.4.1.1.66.1": "REG (registration)",
    "1.2.840.10008.5.1.4.1.1.66.3": "REG (registration)",
    "1.2.840.10008.5.1.4.1.1.481.1": "RTIMAGE",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
    "1.2.840.10008.5.1.4.1.1.481.5": "RTPLAN",
    "1.2.840.10008.5.1.4.1.1.481.8": "RTPLAN (ions)",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.104.1": "PDF",
    "1.2.840.10008.5.1.4.1.1.11.1": "PR (presentation state)",
    "1.2.840.10008.5.1.4.1.1.88.11": "SR (report)",
    "1.2.840.10008.5.1.4.1.1.88.22": "SR (report)",
    "1.2.840.10008.5.1.4.1.1.88.33": "SR (report)",
    "1.2.840.10008.5.1.4.1.1.88.59": "KO (key objects)",
    "1.2.840.10008.5.1.4.1.1.88.67": "SR (dose report)",
}
_NOT_A_SCAN_MODALITIES = ("SEG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RTIMAGE", "SR", "PR", "KO", "REG", "DOC")


def open_dicom_series(folder: Path) -> Channel:
    """Read the headers of all files in `folder` and check that they are one complete stack of slices.

    The grid is x along a row, y along a column, z along their cross product, with slices sorted by position
    along it; the origin is the position of the first slice, the z spacing the mean step.

    Raises:
        ScanError: no image, several series, colour, multi-frame, not a scan, damaged, a name that is not UTF-8;
            slices that are missing, doubled, unevenly spaced, tilted or of different size, spacing or orientation,
            or whose values do not mean the same; or something in the folder that cannot be told from a slice.
        OSError: a file cannot be read.
    """
    names = _names(folder)
    series = _series(folder)

    def read_into(out: Array) -> None:
        for header, plane in zip(series.headers, out, strict=True):
            decode_plane(header, plane)
        if _names(folder) != names:
            raise ScanError(
                f"{shown(folder)}: found files that came or went while the series was read, expected them to "
                "stay; wait until the series is complete"
            )

    return Channel(shown(folder), series.geometry, read_into, series.warnings)


def _names(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not is_junk(name)}  # noqa: PTH208  thousands of names, no paths


def ordered_files(folder: Path) -> tuple[list[Path], Geometry]:
    """The file of each slice, in the order in which `open_dicom_series` stacks them along z, and their grid.

    Raises:
        ScanError, OSError: as `open_dicom_series`.
    """
    series = _series(folder)
    return [header.path for header in series.headers], series.geometry


def is_dicom_file(path: Path) -> bool:
    """Whether the file starts like DICOM part 10 (PS3.10)."""
    with path.open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


def is_junk(name: str) -> bool:
    """Whether a file of this name is hidden, or left by discs and file managers, and says nothing about a scan."""
    return name.startswith(".") or name.lower() in _JUNK


def check_kind(path: Path) -> None:
    """Refuse what is neither a file nor a folder: it may stand for a slice or scan that is not there.

    Raises:
        ScanError: a link that leads nowhere, a pipe, a device.
        OSError: it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            raise ScanError(
                f"{shown(path)}: found a link that leads nowhere, expected a file; copy what it stands for, or remove "
                "it"
            ) from error
        raise
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ScanError(f"{shown(path)}: found neither a file nor a folder, expected a file; remove it")


@dataclass(frozen=True)
class _Series:
    """Headers in the order of their slices."""

    headers: list[DicomHeader]
    geometry: Geometry
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    """What lies in a folder with slices.

    Attributes:
        slices: files that are, or may be, slices.
        others: names of what is plainly something else.
    """

    slices: list[Path]
    others: list[str]


def _series(folder: Path) -> _Series:
    name = shown(folder)
    found = _looked_through(folder)
    if not found.slices:
        raise ScanError(f"{name}: {_no_slices(folder)}")
    undecodable = next((path for path in found.slices if not is_utf8(path)), None)
    if undecodable:
        raise ScanError(f"{shown(undecodable)}: {NOT_UTF8}")
    headers = [_header(path) for path in found.slices]
    _check_one_series(headers, name)
    _check_one_meaning(headers)
    by_path = {header.path: header for header in headers}
    ordered, geometry = stack([_slice(header) for header in headers], name)
    check_grid(geometry, name)
    return _Series([by_path[s.path] for s in ordered], geometry, _passed_over(found.others, name))


def _looked_through(folder: Path) -> _Folder:
    """Sort what lies in a folder; what might be a slice counts as one, so that a damaged one is noticed.

    Raises:
        ScanError: a link leads nowhere, or a folder beside the slices holds further ones.
    """
    slices: list[Path] = []
    others: list[Path] = []
    folders: list[Path] = []
    for path in sorted(folder.iterdir()):
        if is_junk(path.name):
            continue
        check_kind(path)
        if path.is_dir():
            folders.append(path)
        elif _may_be_slice(path):
            slices.append(path)
        else:
            others.append(path)
    for inner in folders if slices else []:
        stray = next((path for path in islice(_files_below(inner), _MOST_FILES) if is_dicom_file(path)), None)
        if stray:
            raise ScanError(
                f"{shown(stray)}: found a DICOM file in a folder beside the slices, expected all slices of the series "
                f"in {shown(folder)} and nothing else; move the folder, or its files"
            )
    return _Folder(slices, [path.name for path in others] + [f"{inner.name}/" for inner in folders])


def _files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.is_file():
                yield path


def _passed_over(names: Sequence[str], folder: str) -> tuple[str, ...]:
    if not names:
        return ()
    listed = ", ".join(one_line(name, 80) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    return (f"{folder}: {len(names)} file(s) or folder(s) that are no DICOM images were not read: {listed}.",)


def _header(path: Path) -> DicomHeader:
    """The header of one file that is an image of a scan.

    Raises:
        ScanError: it is something else, or cannot be read.
    """
    _refuse_object(path, _NOT_A_SCAN.get(media_storage_class(path)))
    header = DicomHeader(path)
    modality = header.text(Tag.MODALITY)
    _refuse_object(path, _NOT_A_SCAN.get(header.text(Tag.SOP_CLASS)))
    _refuse_object(path, modality if modality in _NOT_A_SCAN_MODALITIES else None)
    header.check_has_pixels()
    frames = header.text(Tag.FRAMES)
    # Functional groups may hold a position and a rescaling, be it of one frame.
    if not _ONE_FRAME.fullmatch(frames) or header.has(Tag.FUNCTIONAL_GROUPS):
        raise ScanError(
            f"{header.name}: found a multi-frame image ({frames or 'unknown'} frames), expected one slice per file; "
            "convert the series to .nii.gz, e.g. with dcm2niix"
        )
    photometric = header.text(Tag.PHOTOMETRIC)
    if header.unsigned(Tag.SAMPLES, 1) != 1 or photometric != "MONOCHROME2":
        # Values of MONOCHROME1 would have to be negated, those of a palette looked up.
        raise ScanError(
            f"{header.name}: found {photometric or 'unknown'} pixels, expected MONOCHROME2; give the original series"
        )
    if header.has(Tag.MODALITY_LUT):
        raise ScanError(
            f"{header.name}: found values that a table translates (ModalityLUTSequence), expected a rescale slope and "
            "intercept; convert the series"
        )
    check_readable(header)
    return header


def _refuse_object(path: Path, kind: str | None) -> None:
    if kind:
        raise ScanError(f"{shown(path)}: found a DICOM {kind} object, expected images of a scan; remove it")


def _slice(header: DicomHeader) -> Slice:
    """Position, orientation and size; `ScanError` if one is missing."""
    orientation = header.numbers(Tag.ORIENTATION, 6)
    row_spacing, column_spacing = header.numbers(Tag.PIXEL_SPACING, 2)
    form = header.pixel_format
    return Slice(
        path=header.path,
        size_xy=(form.columns, form.rows),
        # DICOM gives the distance between rows first, which is the y spacing.
        spacing_xy=(column_spacing, row_spacing),
        position=header.numbers(Tag.POSITION, 3),
        row=orientation[:3],
        column=orientation[3:],
        thickness=header.length(Tag.THICKNESS),
        between=header.length(Tag.BETWEEN),
    )


def _group(header: DicomHeader) -> tuple[str, str]:
    """What all slices of one series share. Anonymised files may have empty UIDs."""
    return (header.text(Tag.PATIENT_ID), header.text(Tag.SERIES) or header.text(Tag.STUDY))


def _check_one_series(headers: Sequence[DicomHeader], name: str) -> None:
    counts = Counter(_group(header) for header in headers)
    if len(counts) == 1:
        return
    first = {_group(header): header for header in reversed(headers)}
    # Patient identifiers stay out of messages and logs.
    listed = "; ".join(
        f"{first[group].text(Tag.SERIES) or 'no UID'} '{first[group].text(Tag.SERIES_DESCRIPTION)}' {count} files"
        for group, count in counts.items()
    )
    patients = len({patient for patient, _ in counts})
    of_patients = f" of {patients} patients" if patients > 1 else ""
    raise ScanError(
        f"{name}: found {len(counts)} series{of_patients} ({one_line(listed, limit=600)}), expected one; keep only one "
        "in the folder"
    )


def _rescale_presence(header: DicomHeader) -> str:
    return "none" if header.rescale is None else "a slope and an intercept"


def _ct_rescale(header: DicomHeader) -> str:
    """Hounsfield units come from one slope and intercept; those of PET and MR may change from slice to slice."""
    return str(header.rescale) if header.text(Tag.MODALITY) == "CT" else ""


_SAME: dict[str, Callable[[DicomHeader], str]] = {
    "modality": lambda header: header.text(Tag.MODALITY),
    "rescaling": _rescale_presence,
    "rescale type": lambda header: header.text(Tag.RESCALE_TYPE),
    "units": lambda header: header.text(Tag.UNITS),
    "pixel format": lambda header: header.pixel_format.described,
    "rescale slope and intercept of a CT": _ct_rescale,
}
"""What must agree in all slices: otherwise one voxel's value does not mean what another's does."""


def _check_one_meaning(headers: Sequence[DicomHeader]) -> None:
    """Refuse a series whose slices' values do not mean the same, naming the slice that differs from most.

    Raises:
        ScanError: says what differs.
    """
    for what, of in _SAME.items():
        found = [of(header) for header in headers]
        (usual, _), *rest = Counter(found).most_common()
        if rest:
            odd = headers[next(i for i, value in enumerate(found) if value != usual)]
            raise ScanError(
                f"{odd.name}: found {what} '{of(odd) or 'none'}', expected '{usual or 'none'}' as in most slices; "
                "export the series again"
            )


def _may_be_slice(path: Path) -> bool:
    """Leave out what is plainly no image, but nothing that could be a damaged slice."""
    if is_dicom_file(path):
        return True
    suffix = path.suffix.lower()
    if suffix not in _IMAGE_SUFFIXES and not suffix[1:].isdigit():
        return False
    with path.open("rb") as file:
        head = file.read(512)
    # README and the like; an empty file or a binary one without suffix may be a slice that was lost.
    return bool(suffix) or not head or not head.isascii() or b"\0" in head


def _no_slices(folder: Path) -> str:
    inside = [path.name + "/" for path in sorted(folder.iterdir()) if path.is_dir()]
    hint = f" (it has subfolders: {one_line(', '.join(inside))})" if inside else ""
    return f"found no DICOM images in the folder{hint}, expected the slices of one series; give their folder"
