"""The DICOM part of the sample data: contours become label maps on the grids of their image stacks."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.io.dicom import ordered_files
from masksam_export.families.masksam.training.samples.contours import (
    Contour,
    check_enclosed,
    check_nobody_twice,
    paint,
    read_contours,
)
from masksam_export.families.masksam.training.samples.files import read_text, unreadable

PHASES = ("ED", "ES")
"""End of diastole and of systole."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HEADER = ["patient_id", "original_id"]


@dataclass(frozen=True)
class Stack:
    """One phase of a patient: the number of each slice's image, in z order, and the grid."""

    phase: str
    folder: Path
    numbers: tuple[int, ...]
    geometry: Geometry

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Array shape of one slice."""
        return self.geometry.shape_zyx[1:]


@dataclass(frozen=True)
class DicomPatient:
    """A patient's two stacks and contours, checked against each other.

    Attributes:
        name: of the image folder.
        original: how contours and the PNG part call the patient.
        stacks: one per phase.
        cavity, border: i- and o-contours by image number.
    """

    name: str
    original: str
    stacks: tuple[Stack, ...]
    cavity: dict[int, Contour]
    border: dict[int, Contour]


def find_patients(folder: Path) -> list[DicomPatient]:
    """All patients of `link.csv` with images and contours.

    Raises:
        DatasetError: something is missing, or images and contours contradict each other.
        ScanError: a stack is not one complete series.
    """
    links = _read_links(folder / "link.csv")
    patients = [_read_patient(folder, name, original) for name, original in links]
    _check_nothing_unlinked(folder, links)
    # First of all, as copies explain most of what else could be found.
    check_nobody_twice([(p.original, contour) for p in patients for contour in _contours(p)])
    for patient in patients:
        _check_numbers(patient)
        _check_borders(patient)
    return patients


def label_maps(patient: DicomPatient) -> Iterator[tuple[str, Volume]]:
    """The phase and label map (1 in the LV cavity, `[Z, Y, X]` uint8) of each stack.

    Raises:
        DatasetError: a contour does not fit its image.
    """
    for stack in patient.stacks:
        labels = np.zeros(stack.geometry.shape_zyx, np.uint8)
        for plane, number in zip(labels, stack.numbers, strict=True):
            # Slices beyond the cavity's ends have no contour.
            if number in patient.cavity:
                plane[paint(patient.cavity[number], stack.shape_yx)] = 1
        yield stack.phase, Volume(labels, stack.geometry)


def _check_nothing_unlinked(folder: Path, links: Sequence[tuple[str, str]]) -> None:
    """A lost row would quietly take a patient away."""
    linked = {name for pair in links for name in pair}
    images = [place for place in sorted(folder.iterdir()) if any((place / phase).is_dir() for phase in PHASES)]
    contours = [place for place in sorted((folder / "contours").glob("*")) if place.is_dir()]
    left_over = [shown(place) for place in (*images, *contours) if place.name not in linked]
    if left_over:
        raise DatasetError(
            f"{shown(folder / 'link.csv')}: found no row for {', '.join(left_over[:8])}, expected one per patient; "
            "add it, or take the folder away"
        )


def _read_links(path: Path) -> list[tuple[str, str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path), newline=""), strict=True) if row]
    except csv.Error as error:
        raise DatasetError(f"{shown(path)}: found no valid CSV ({error}), expected two columns; copy it") from error
    if not rows or rows[0] != _HEADER or len(rows) < 2:
        found = one_line(",".join(rows[0])) if rows else "nothing"
        raise DatasetError(
            f"{shown(path)}: found '{found}' and {max(len(rows) - 1, 0)} rows, expected the columns "
            f"{','.join(_HEADER)} and a row per patient; copy the file again"
        )
    for row in rows[1:]:
        # The names become paths.
        if len(row) != 2 or not all(_ID.fullmatch(name) for name in row):
            raise DatasetError(
                f"{shown(path)}: found the row '{one_line(','.join(row))}', expected two names of letters, digits, "
                "'-' and '_'; copy the file again"
            )
    for names in zip(*rows[1:], strict=True):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"{shown(path)}: found {twice} in two rows, expected each name once; copy it again")
    return [(row[0], row[1]) for row in rows[1:]]


def _read_patient(folder: Path, name: str, original: str) -> DicomPatient:
    contours = folder / "contours" / original
    return DicomPatient(
        name,
        original,
        stacks=tuple(_find_stack(folder / name / phase, phase) for phase in PHASES),
        cavity=read_contours(contours / "i-contours", "i"),
        # The outer border was drawn for some patients only.
        border=read_contours(contours / "o-contours", "o") if (contours / "o-contours").exists() else {},
    )


def _contours(patient: DicomPatient) -> tuple[Contour, ...]:
    return (*patient.cavity.values(), *patient.border.values())


def _find_stack(folder: Path, phase: str) -> Stack:
    if not folder.is_dir():
        raise DatasetError(f"{shown(folder)}: found no such folder, expected the {phase} images; copy it again")
    try:
        files, geometry = ordered_files(folder)
    except OSError as error:
        raise unreadable(folder, error) from error
    unnumbered = next((path for path in files if not (path.stem.isascii() and path.stem.isdigit())), None)
    if unnumbered:
        raise DatasetError(
            f"{shown(unnumbered)}: found a name without a number, expected NUMBER.dcm, by which contours are found; "
            "give the file its original name"
        )
    return Stack(phase, folder, tuple(int(path.stem) for path in files), geometry)


def _check_numbers(patient: DicomPatient) -> None:
    """Every contour has one image, and every phase some cavity."""
    first, second = (set(stack.numbers) for stack in patient.stacks)
    for contour in _contours(patient):
        if (contour.number in first) == (contour.number in second):
            where = "both" if contour.number in first else "neither"
            raise DatasetError(
                f"{shown(contour.path)}: found image {contour.number} in {where} of {' and '.join(PHASES)} of "
                f"{patient.name}, expected it in one; check link.csv and the image folders"
            )
    for stack in patient.stacks:
        if patient.cavity.keys().isdisjoint(stack.numbers):
            raise DatasetError(
                f"{shown(stack.folder)}: found no i-contour of {patient.original} for any of its images, expected "
                "some; copy the contours again"
            )


def _check_borders(patient: DicomPatient) -> None:
    for stack in patient.stacks:
        for number in sorted(patient.border.keys() & patient.cavity.keys() & set(stack.numbers)):
            check_enclosed(patient.cavity[number], patient.border[number], stack.shape_yx)
