"""The PNG part of the sample data: slices of one patient become an image stack and a label stack."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.text import shown
from masksam_deploy.io.grid import times
from masksam_export.families.masksam.training.samples.files import unreadable, visible_files

Pixels = NDArray[np.uint8]

_NAME = re.compile(r"(?P<patient>[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)-IM-[0-9]{1,9}-(?P<number>[0-9]{1,9})\.dcm\.png")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST = 4096
_MIN_SLICES = 2


@dataclass(frozen=True)
class PngSlice:
    """One image file and its label file."""

    number: int
    image: Path
    label: Path


@dataclass(frozen=True)
class PngPatient:
    """A patient's slices in stacking order, descending by file number.

    That is the order in which the reader stacks the DICOM patients (apex first, all ten stacks); numbers ascend from
    the base in these and in all 40 PNG patients. The other way round, hearts would be mirror images of the scans that
    a network is used on.
    """

    name: str
    slices: tuple[PngSlice, ...]


def find_patients(folder: Path) -> list[PngPatient]:
    """Pair the files in `folder/Images` and `folder/Labels`, by patient.

    Raises:
        DatasetError: a folder is missing or empty, a name is unknown, an image has no label or a label no image,
            two images of a patient have one number, or there is but one.
    """
    images, labels = (_by_relative_path(folder / kind) for kind in ("Images", "Labels"))
    _check_paired(images, labels)
    by_patient: dict[str, dict[int, PngSlice]] = {}
    for relative, image in images.items():
        patient, number = _parse_name(image)
        slices = by_patient.setdefault(patient, {})
        if number in slices:
            raise DatasetError(
                f"{shown(image)}: found the same patient and number as {shown(slices[number].image)}, expected one "
                "image per slice; remove one"
            )
        slices[number] = PngSlice(number, image, labels[relative])
    if not by_patient:
        raise DatasetError(f"{shown(folder)}: found no PNG files in Images, expected slices; copy the data again")
    patients = [
        PngPatient(name, tuple(slices[number] for number in sorted(slices, reverse=True)))
        for name, slices in sorted(by_patient.items())
    ]
    for found in patients:
        if len(found.slices) < _MIN_SLICES:
            only = found.slices[0].image
            raise DatasetError(
                f"{shown(only)}: found the only slice of its patient, expected at least {_MIN_SLICES}; copy the rest"
            )
    return patients


def read_stacks(patient: PngPatient) -> tuple[Pixels, Pixels]:
    """The grey values and the labels (0 and 1) of a patient, both `[Z, Y, X]`.

    Raises:
        DatasetError: a file cannot be read or holds something else, or sizes differ.
    """
    first = patient.slices[0].image
    images: list[Pixels] = []
    labels: list[Pixels] = []
    for one in patient.slices:
        image = _read_grey(one.image)
        label = _read_grey(one.label)
        if label.shape != image.shape:
            raise _other_size(one.label, label, one.image, image)
        if images and image.shape != images[0].shape:
            raise _other_size(one.image, image, first, images[0])
        images.append(image)
        labels.append(_as_classes(label, one.label))
    return np.stack(images), np.stack(labels)


def _by_relative_path(folder: Path) -> dict[Path, Path]:
    return {path.relative_to(folder): path for path in visible_files(folder, deep=True)}


def _check_paired(images: dict[Path, Path], labels: dict[Path, Path]) -> None:
    for found, others, kind in ((images, labels, "label"), (labels, images, "image")):
        alone = next((path for relative, path in found.items() if relative not in others), None)
        if alone:
            raise DatasetError(
                f"{shown(alone)}: found no {kind} of the same name, expected one for every file; copy it or remove this"
            )


def _parse_name(path: Path) -> tuple[str, int]:
    match = _NAME.fullmatch(path.name)
    if not match:
        raise DatasetError(
            f"{shown(path)}: found an unknown kind of name, expected PATIENT-IM-0001-NUMBER.dcm.png; "
            "rename or remove it"
        )
    return match["patient"], int(match["number"])


def _read_grey(path: Path) -> Pixels:
    """One channel of an 8-bit picture, `[Y, X]`; the files repeat grey in red, green and blue."""
    pixels = _decode(path)
    if pixels.ndim == 3:
        if not (pixels == pixels[..., :1]).all():
            raise DatasetError(f"{shown(path)}: found colours, expected grey in all channels; copy the file again")
        pixels = pixels[..., 0]
    return np.ascontiguousarray(pixels)


def _decode(path: Path) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    _check_header(path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            mode = image.mode
            pixels = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, zlib.error) as error:
        raise DatasetError(f"{shown(path)}: found a damaged PNG, expected a picture; copy the file again") from error
    if mode not in ("L", "RGB"):
        raise DatasetError(f"{shown(path)}: found a PNG of type {mode}, expected 8-bit grey or RGB; convert it")
    return pixels


def _check_header(path: Path) -> None:
    """Refuse what would not fit into memory before a decoder sees it (PNG specification, 5.2 and 11.2.2)."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(head) < 24 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise DatasetError(f"{shown(path)}: found no PNG, expected one by its name; copy the file again")
    size = struct.unpack(">II", head[16:])
    if not 0 < min(size) <= max(size) <= _LARGEST:
        raise DatasetError(
            f"{shown(path)}: found {times(size)} pixels, expected at most {_LARGEST} x {_LARGEST}; copy the file again"
        )


def _as_classes(label: Pixels, path: Path) -> Pixels:
    if other := next(_other_values(label), None):
        raise DatasetError(
            f"{shown(path)}: found the value {other}, expected only 0 (background) and 255 (LV cavity); copy it again"
        )
    return (label == 255).astype(np.uint8)


def _other_values(label: Pixels) -> Iterator[int]:
    return (int(value) for value in np.unique(label) if value not in (0, 255))


def _other_size(path: Path, pixels: Pixels, reference: Path, expected: Pixels) -> DatasetError:
    return DatasetError(
        f"{shown(path)}: found {times(pixels.shape[::-1])} pixels, expected {times(expected.shape[::-1])} as in "
        f"{shown(reference)}; copy both files again"
    )
