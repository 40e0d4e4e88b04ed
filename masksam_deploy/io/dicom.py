"""A folder with one DICOM series, read slice by slice by ITK (GDCM).

GDCM applies the rescale slope and intercept of each slice and refuses truncated pixel data. Which slices
belong together and where they lie is decided here and in `dicom_stack.py`, since ITK's own series reader
stacks whatever it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from masksam_deploy.errors import ScanError
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.dicom_lengths import check_lengths
from masksam_deploy.io.dicom_stack import Slice, stack
from masksam_deploy.io.grid import check_grid
from masksam_deploy.io.itk import quiet_itk
from masksam_deploy.text import NOT_UTF8, is_utf8, itk_reason, one_line, shown
from masksam_deploy.volume import Array, Geometry

_PREAMBLE = 128
_IMAGE_SUFFIXES = ("", ".dcm", ".dicom", ".ima", ".img")
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

_SOP_CLASS, _MODALITY, _DESCRIPTION = "0008|0016", "0008|0060", "0008|103e"
_PATIENT, _STUDY, _SERIES = "0010|0020", "0020|000d", "0020|000e"
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_SAMPLES, _PHOTOMETRIC, _FRAMES = "0028|0002", "0028|0004", "0028|0008"
_INTERCEPT, _SLOPE = "0028|1052", "0028|1053"
_THICKNESS, _BETWEEN = "0018|0050", "0018|0088"


def open_dicom_series(folder: Path) -> Channel:
    """Read the headers of all files in `folder` and check that they are one complete stack of slices.

    The grid is x along a row, y along a column, z along their cross product, with slices sorted by position
    along it; the origin is the position of the first slice, the z spacing the mean step.

    Raises:
        ScanError: no image, several series, colour, multi-frame, not a scan, damaged, a name that is not UTF-8;
            or slices that are missing, doubled, unevenly spaced, tilted or of different size, spacing or orientation.
        OSError: a file cannot be read.
    """
    paths, geometry = ordered_files(folder)

    def read_into(out: Array) -> None:
        for path, plane in zip(paths, out, strict=True):
            _decode(path, plane)

    return Channel(shown(folder), geometry, read_into)


def ordered_files(folder: Path) -> tuple[list[Path], Geometry]:
    """The file of each slice, in the order in which `open_dicom_series` stacks them along z, and their grid.

    Raises:
        ScanError, OSError: as `open_dicom_series`.
    """
    name = shown(folder)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _may_be_slice(path)]
    if not files:
        raise ScanError(f"{name}: {_no_slices(folder)}")
    undecodable = next((path for path in files if not is_utf8(path)), None)
    if undecodable:
        raise ScanError(f"{shown(undecodable)}: {NOT_UTF8}")
    headers = [_Header(path) for path in files]
    _check_one_series(headers, name)
    slices = [header.slice() for header in headers]
    ordered, geometry = stack(slices, name)
    check_grid(geometry, name)
    return [s.path for s in ordered], geometry


def is_dicom_file(path: Path) -> bool:
    """Whether the file starts like DICOM part 10 (PS3.10)."""
    with path.open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


class _Header:
    """The tags of one file that decide whether and where its image belongs to the stack."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kind = _NOT_A_SCAN.get(_media_storage_class(path))
        if kind:
            raise ScanError(f"{shown(path)}: found a DICOM {kind} object, expected images of a scan; remove it")
        check_lengths(path)
        self._reader = _reader(path)
        try:
            with quiet_itk():
                self._reader.ReadImageInformation()
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        self._refuse_other_objects()

    def text(self, tag: str) -> str:
        """The tag's value on one line, or an empty string."""
        if not self._reader.HasMetaDataKey(tag):
            return ""
        return one_line(self._reader.GetMetaData(tag).strip(" \0"))

    def group(self) -> tuple[str, str]:
        """What all slices of one series share. Anonymised files may have empty UIDs."""
        return (self.text(_PATIENT), self.text(_SERIES) or self.text(_STUDY))

    def slice(self) -> Slice:
        """Position, orientation and size; `ScanError` if one is missing."""
        columns, rows = self._reader.GetSize()[:2]
        orientation = self._numbers(_ORIENTATION, 6, "ImageOrientationPatient")
        row_spacing, column_spacing = self._numbers(_PIXEL_SPACING, 2, "PixelSpacing")
        return Slice(
            path=self.path,
            size_xy=(int(columns), int(rows)),
            # DICOM gives the distance between rows first, which is the y spacing.
            spacing_xy=(column_spacing, row_spacing),
            position=self._numbers(_POSITION, 3, "ImagePositionPatient"),
            row=orientation[:3],
            column=orientation[3:],
            thickness=self._length(_THICKNESS),
            between=self._length(_BETWEEN),
        )

    def _refuse_other_objects(self) -> None:
        where = shown(self.path)
        kind = _NOT_A_SCAN.get(self.text(_SOP_CLASS))
        modality = self.text(_MODALITY)
        if kind or modality in _NOT_A_SCAN_MODALITIES:
            raise ScanError(f"{where}: found a DICOM {kind or modality} object, expected images of a scan; remove it")
        frames = self.text(_FRAMES)
        if frames not in ("", "0", "1") or self._reader.GetSize()[2] != 1:
            raise ScanError(
                f"{where}: found a multi-frame image ({frames or self._reader.GetSize()[2]} frames), expected one "
                "slice per file; convert the series to .nii.gz, e.g. with dcm2niix"
            )
        photometric = self.text(_PHOTOMETRIC)
        if self.text(_SAMPLES) not in ("", "1") or photometric != "MONOCHROME2":
            # GDCM negates MONOCHROME1 values and looks up palettes.
            raise ScanError(
                f"{where}: found {photometric or 'unknown'} pixels, expected MONOCHROME2; give the original series"
            )
        if self.text(_INTERCEPT):
            self._numbers(_INTERCEPT, 1, "RescaleIntercept")
        # GDCM takes a slope of 0 as 1.
        if self.text(_SLOPE) and self._numbers(_SLOPE, 1, "RescaleSlope")[0] == 0:
            raise ScanError(f"{where}: found a rescale slope of 0, expected another number; repair the file")

    def _length(self, tag: str) -> float | None:
        """A length in mm that is only a hint; None if it is missing or makes no sense."""
        try:
            value = float(self.text(tag))
        except ValueError:
            return None
        return value if 0 < value < np.inf else None

    def _numbers(self, tag: str, count: int, meaning: str) -> tuple[float, ...]:
        text = self.text(tag)
        try:
            values = tuple(float(part) for part in text.split("\\"))
        except ValueError:
            values = ()
        if len(values) != count or not np.isfinite(values).all():
            found = f"'{text}'" if text else "none"
            raise ScanError(
                f"{shown(self.path)}: found {found} as {meaning}, expected {count} numbers; give the original series"
            )
        return values


def _may_be_slice(path: Path) -> bool:
    """Leave out what is plainly no image, but nothing that could be a damaged slice."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
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


def _unreadable(path: Path, error: RuntimeError) -> ScanError:
    return ScanError(
        f"{shown(path)}: found a damaged or unsupported DICOM file ({itk_reason(error)}), expected a complete image; "
        "copy it again, or remove it if it is no image"
    )


def _media_storage_class(path: Path) -> str:
    """MediaStorageSOPClassUID of the file meta header, which GDCM keeps for itself if there is no image."""
    with path.open("rb") as file:
        head = file.read(4096)
    start = head.find(b"\x02\x00\x02\x00UI", _PREAMBLE)
    if start < 0:
        return ""
    length = int.from_bytes(head[start + 6 : start + 8], "little")
    return head[start + 8 : start + 8 + length].decode("ascii", "replace").strip(" \0")


def _check_one_series(headers: Sequence[_Header], name: str) -> None:
    counts = Counter(header.group() for header in headers)
    if len(counts) == 1:
        return
    first = {header.group(): header for header in reversed(headers)}
    # Patient identifiers stay out of messages and logs.
    listed = "; ".join(
        f"{first[group].text(_SERIES) or 'no UID'} '{first[group].text(_DESCRIPTION)}' {count} files"
        for group, count in counts.items()
    )
    patients = len({patient for patient, _ in counts})
    of_patients = f" of {patients} patients" if patients > 1 else ""
    raise ScanError(
        f"{name}: found {len(counts)} series{of_patients} ({one_line(listed, limit=600)}), expected one; keep only one "
        "in the folder"
    )


def _decode(path: Path, plane: Array) -> None:
    try:
        with quiet_itk():
            image = _reader(path).Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    values = SimpleITK.GetArrayViewFromImage(image)
    if values.shape != (1, *plane.shape):
        raise ScanError(f"{shown(path)}: found {values.shape} pixels, expected {plane.shape}; copy the file again")
    with np.errstate(over="ignore"):
        np.copyto(plane, values[0], casting="same_kind")


def _reader(path: Path) -> SimpleITK.ImageFileReader:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    reader.LoadPrivateTagsOff()
    return reader
