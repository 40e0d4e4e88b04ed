"""Reads an nnU-Net raw dataset, and refuses what could quietly train a wrong network.

The layout is nnU-Net v2's: `dataset.json`, `imagesTr/NAME_0000.nii.gz` (one file per channel), `labelsTr/NAME.nii.gz`.
The Medical Segmentation Decathlon's is taken too, where it means the same: images without a channel number if there
is one channel, `modality`, labels as value -> name, no `file_ending`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import DatasetError, ScanError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.rules import is_plain_name
from masksam_deploy.io import read_volume
from masksam_deploy.io.itk import scan_suffix
from masksam_export.families.masksam.training.description import DESCRIPTION, read_description

LabelMap: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

IMAGES, LABELS = "imagesTr", "labelsTr"
_CHANNEL_NUMBER = re.compile(r"(?P<name>.+)_(?P<channel>[0-9]{4})\Z")
_LISTED = 8


@dataclass(frozen=True)
class Case:
    """One training case: a file per channel, in the order of the channels, and the label map."""

    name: str
    images: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True)
class Dataset:
    """A dataset whose files are complete; their content has not been read.

    Attributes:
        root: the folder that holds `dataset.json`.
        name: that folder's name.
        json: `dataset.json` in nnU-Net v2's form, whatever form the file had.
        channel_names: one per image file of a case.
        label_names: the index is the value in the label maps; background comes first.
        cases: sorted by name.
    """

    root: Path
    name: str
    json: Mapping[str, Any]
    channel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    cases: tuple[Case, ...]


def read_dataset(root: Path) -> Dataset:
    """Read `dataset.json` and pair every image with its labels.

    Raises:
        DatasetError: no such dataset, a description that cannot be trained on, or files that do not pair up.
    """
    if not root.is_dir():
        raise DatasetError(
            f"{shown(root)}: found no such folder, expected one with {DESCRIPTION}, {IMAGES}/ and {LABELS}/; "
            "check the path"
        )
    described = read_description(root / DESCRIPTION)
    cases = _cases(root, described.file_ending, len(described.channel_names))
    return Dataset(
        root=root,
        name=root.resolve().name,
        json=described.json(len(cases)),
        channel_names=described.channel_names,
        label_names=described.label_names,
        cases=cases,
    )


def load_case(case: Case, dataset: Dataset) -> tuple[Volume, Volume]:
    """Read a case and check it.

    Returns:
        The scan, float32 `[C, Z, Y, X]`, and its labels `[Z, Y, X]`, uint8 (uint16 beyond 256 classes), on the same
        grid.

    Raises:
        DatasetError: a file is damaged; the files do not lie on one grid; a voxel is not finite, or no label of
            the dataset.
        MemoryLimitError: the case does not fit into memory.
    """
    try:
        # Read as one more channel, the labels are held to the grid of the scan like any channel.
        read = read_volume([*case.images, case.labels])
    except ScanError as error:
        raise DatasetError(f"case '{case.name}': {error}") from error
    array = np.asarray(read.array, dtype=np.float32)
    labels = _integer_labels(array[-1], dataset.label_names, case)
    # A copy: a view would keep the labels in float32 alive as long as the scan.
    return Volume(array[:-1].copy(), read.geometry), Volume(labels, read.geometry)


def _integer_labels(values: NDArray[np.float32], names: tuple[str, ...], case: Case) -> LabelMap:
    count = len(names)
    inside = bool(values.min() >= 0 and values.max() < count)
    labels = cast(LabelMap, values.astype(np.uint8 if count <= 256 else np.uint16)) if inside else None
    if labels is None or not np.array_equal(labels, values):
        expected = ", ".join(f"{value} {name}" for value, name in enumerate(names[:_LISTED]))
        more = f", ... {count - 1}" if count > _LISTED else ""
        raise DatasetError(
            f"case '{case.name}': {shown(case.labels)}: found label values {_some_values(values)}, expected only "
            f"those of {DESCRIPTION} ({expected}{more}); correct the label map or {DESCRIPTION}"
        )
    return labels


def _some_values(values: NDArray[np.float32]) -> str:
    found = np.unique(values)
    shortened = ", ".join(f"{value:g}" for value in found[:_LISTED])
    return shortened if len(found) <= _LISTED else f"{shortened}, ... {found[-1]:g} ({len(found)} in all)"


def _cases(root: Path, ending: str, channels: int) -> tuple[Case, ...]:
    images, labels = _files(root / IMAGES, ending), _files(root / LABELS, ending)
    cases: list[Case] = []
    problems: list[str] = []
    for name, path in sorted(labels.items()):
        found = _images_of(name, images, channels)
        missing = [file for file in found if file not in images]
        if len(missing) == len(found):
            problems.append(f"{LABELS}/{name}{ending} has no image ({IMAGES}/{found[0]}{ending})")
        elif missing:
            problems.append(f"case '{name}' lacks {IMAGES}/{missing[0]}{ending}")
        else:
            cases.append(Case(name, tuple(images[file] for file in found), path))
    problems += _leftovers(images, labels, cases, channels, ending)
    problems += _claimed_twice(cases)
    if problems:
        raise DatasetError(
            f"{shown(root)}: {_some(problems)}; expected {_expected_images(channels, ending)} for each "
            f"{LABELS}/NAME{ending} and no others: add, rename or remove the files"
        )
    if len(cases) < 2:
        raise DatasetError(
            f"{shown(root)}: found {len(cases)} case, expected at least 2: one to train on, one to validate; add cases"
        )
    return tuple(cases)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """The files of a folder by name without ending; hidden ones and those that are no scans are left out."""
    where = shown(folder)
    try:
        # macOS leaves '._NAME.nii.gz' beside each file of an archive; the Decathlon's archives are full of them.
        paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and scan_suffix(path)]
    except OSError as error:
        raise DatasetError(
            f"{where}: cannot be listed ({one_line(error.strerror or str(error))}), expected a folder of "
            f"{ending} files; check the dataset"
        ) from error
    if not paths:
        raise DatasetError(f"{where}: found no {ending} files, expected the dataset's; check the dataset")
    for path in paths:
        _check_file(path, ending)
    names = {path.name.removesuffix(ending): path for path in paths}
    _refuse_same_but_case(names, where)
    return names


def _check_file(path: Path, ending: str) -> None:
    name = path.name.removesuffix(ending)
    if not path.name.endswith(ending):
        raise DatasetError(
            f"{shown(path)}: found another file type, expected only {ending} as {DESCRIPTION} says; convert or "
            "remove it"
        )
    if "/" in name or not is_plain_name(name):
        raise DatasetError(
            f"{shown(path)}: found an unusual file name, expected letters, digits, '_', '-', '+' and '.'; rename it"
        )
    if not path.is_file():
        raise DatasetError(f"{shown(path)}: found no readable file, expected a scan; repair the link or remove it")


def _refuse_same_but_case(names: Iterable[str], where: str) -> None:
    counts = Counter(name.casefold() for name in names)
    alike = [name for name in names if counts[name.casefold()] > 1]
    if alike:
        raise DatasetError(
            f"{where}: found names that differ only in upper and lower case ({_some(alike)}), expected names that "
            "every file system tells apart; rename or remove them"
        )


def _images_of(name: str, images: Mapping[str, Path], channels: int) -> list[str]:
    """The image names of a case, whether they exist or not."""
    numbered = [f"{name}_{channel:04d}" for channel in range(channels)]
    # Only the labels tell: 'heart_0001' may be a case of the Decathlon or the second channel of 'heart'.
    return [name] if channels == 1 and numbered[0] not in images and name in images else numbered


def _leftovers(
    images: Mapping[str, Path], labels: Mapping[str, Path], cases: list[Case], channels: int, ending: str
) -> list[str]:
    """What is wrong with images that no case uses."""
    used = {path for case in cases for path in case.images}
    problems = []
    for image, path in images.items():
        numbered = _CHANNEL_NUMBER.match(image)
        name = numbered["name"] if numbered else image
        if path in used or (name in labels and numbered and int(numbered["channel"]) < channels):
            continue  # the latter is part of a case with a missing channel
        file = f"{IMAGES}/{image}{ending}"
        if name in labels and numbered:
            problems.append(f"{file} is a channel more than the {channels} that {DESCRIPTION} names")
        elif image in labels and channels == 1:
            problems.append(f"{file} is a duplicate of {IMAGES}/{image}_0000{ending}")
        elif image in labels:
            problems.append(f"{file} has no channel number")
        else:
            problems.append(f"{file} has no labels ({LABELS}/{name}{ending})")
    return problems


def _claimed_twice(cases: list[Case]) -> list[str]:
    owners: dict[Path, str] = {}
    problems = []
    for case in cases:
        for path in case.images:
            if path in owners:
                problems.append(f"{IMAGES}/{path.name} belongs to two cases ('{owners[path]}' and '{case.name}')")
            owners[path] = case.name
    return problems


def _expected_images(channels: int, ending: str) -> str:
    last = f" to NAME_{channels - 1:04d}{ending}" if channels > 1 else ""
    return f"{IMAGES}/NAME_0000{ending}{last}"


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
