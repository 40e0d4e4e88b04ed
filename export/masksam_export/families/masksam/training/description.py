"""A dataset's `dataset.json`: nnU-Net v2's form, or the Medical Segmentation Decathlon's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.text import is_utf8, one_line, shown
from masksam_deploy.bundle.rules import shown as shown_value
from masksam_deploy.io.itk import SCAN_SUFFIXES
from masksam_export.plans import READERS

DESCRIPTION = "dataset.json"
DEFAULT_ENDING = ".nii.gz"
MAX_JSON_BYTES = 16 * 2**20
MAX_CHANNELS = 10_000  # what four digits can number
MAX_CLASSES = 2**15  # what int16 labels can hold
EXAMPLE = (
    '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "anterior": 1, "posterior": 2}, "numTraining": 100, '
    '"file_ending": ".nii.gz"}'
)
_ABOUT = ("name", "description", "reference", "licence", "license", "release")


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says, checked.

    Attributes:
        channel_names: one per image file of a case.
        label_names: the index is the value in the label maps; background comes first.
        file_ending: of images and label maps, e.g. `.nii.gz`.
        about: what it says for people.
    """

    channel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    file_ending: str
    about: Mapping[str, str]

    def json(self, cases: int) -> dict[str, Any]:
        """`dataset.json` of `cases` cases in nnU-Net v2's form, with nothing in it that has not been checked."""
        return {
            **self.about,
            "channel_names": {str(index): name for index, name in enumerate(self.channel_names)},
            "labels": {name: value for value, name in enumerate(self.label_names)},
            "numTraining": cases,
            "file_ending": self.file_ending,
        }


def read_description(path: Path) -> Description:
    """Read and check a `dataset.json`.

    Raises:
        DatasetError: missing, malformed, or asking for what is not trained here (regions, an ignore label).
    """
    content = _content(path)
    where = shown(path)
    _refuse_other_reader(content.get("overwrite_image_reader_writer"), where)
    return Description(
        channel_names=_channel_names(content, where),
        label_names=_label_names(content.get("labels"), where),
        file_ending=_file_ending(content, where),
        about={key: content[key] for key in _ABOUT if isinstance(content.get(key), str) and is_utf8(content[key])},
    )


def _content(path: Path) -> dict[str, Any]:
    where = shown(path)
    if not path.is_file():
        raise DatasetError(f"{where}: found no such file, expected the dataset's description; write one like {EXAMPLE}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise DatasetError(
                f"{where}: found more than {MAX_JSON_BYTES >> 20} MiB, expected some lines of JSON; write one like "
                f"{EXAMPLE}"
            )
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{where}: cannot be read as JSON ({one_line(str(error))}); write one like {EXAMPLE}"
        ) from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{where}: found a JSON {type(content).__name__}, expected an object; write one like {EXAMPLE}"
        )
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        # The last of two equal label names would win, and a class be lost.
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown_value(twice)} occurs twice in one object")
    return content


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _channel_names(content: Mapping[str, Any], where: str) -> tuple[str, ...]:
    key = "channel_names" if "channel_names" in content else "modality"
    found = content.get(key)
    if not isinstance(found, dict) or not found:
        raise DatasetError(
            f'{where}: found {shown_value(found)} as the channels, expected e.g. "channel_names": {{"0": "MRI"}} '
            '("CT" if intensities are Hounsfield units); add it'
        )
    names = [found.get(str(index)) for index in range(min(len(found), MAX_CHANNELS + 1))]
    if len(names) > MAX_CHANNELS or not all(_is_readable(name) for name in names):
        raise DatasetError(
            f"{where}: found {key} {shown_value(found)}, expected a name for each of '0' to '{len(names) - 1}'; "
            "number the channels from 0"
        )
    return tuple(str(name) for name in names)


def _label_names(found: object, where: str) -> tuple[str, ...]:
    """Names by value, from `{name: value}` or the Decathlon's `{"value": name}`."""
    if not isinstance(found, dict) or len(found) < 2:
        raise DatasetError(
            f"{where}: found labels {shown_value(found)}, expected the background and at least one more, e.g. "
            '"labels": {"background": 0, "heart": 1}; add them'
        )
    if len(found) > MAX_CLASSES:
        raise DatasetError(f"{where}: found {len(found)} labels, expected at most {MAX_CLASSES}; check the file")
    values: dict[object, object] = dict(found)
    if all(isinstance(name, str) for name in values.values()):
        values = _swapped(values, where)
    _refuse_untrained(values, where)
    by_value = {value: name for name, value in values.items() if type(value) is int}
    if sorted(by_value) != list(range(len(values))):
        raise DatasetError(
            f"{where}: found label values {shown_value(list(values.values()))}, expected each of 0 to "
            f"{len(values) - 1} once; renumber them here and in the label maps"
        )
    names = [by_value[value] for value in range(len(values))]
    strange = next((name for name in names if not _is_readable(name)), None)
    if strange is not None:
        raise DatasetError(
            f"{where}: found the label name {shown_value(strange)}, expected printable text without line breaks; "
            "rename it"
        )
    if names[0] != "background":
        raise DatasetError(
            f"{where}: found {shown_value(names[0])} as label 0, expected 'background'; name it so, or "
            "renumber the labels"
        )
    return tuple(str(name) for name in names)


def _swapped(values: Mapping[object, object], where: str) -> dict[object, object]:
    swapped: dict[object, object] = {}
    for value, name in values.items():
        if not re.fullmatch(r"[0-9]{1,5}", str(value)) or name in swapped:
            raise DatasetError(
                f"{where}: found labels {shown_value(dict(values))}, expected a number for each name, no name twice, "
                'e.g. {"background": 0, "heart": 1}; correct them'
            )
        swapped[name] = int(str(value))
    return swapped


def _refuse_untrained(values: Mapping[object, object], where: str) -> None:
    regions = [name for name, value in values.items() if isinstance(value, list)]
    if regions:
        raise DatasetError(
            f"{where}: found regions ({shown_value(regions)}), which are not trained here; expected one number for "
            "each label: give each region's parts labels of their own"
        )
    if "ignore" in values:
        raise DatasetError(
            f"{where}: found an 'ignore' label, which is not trained here; expected only labels to learn: leave out "
            "the cases that have it, or relabel them"
        )


def _is_readable(name: object) -> bool:
    return isinstance(name, str) and name.strip() != "" and one_line(name) == name


def _file_ending(content: Mapping[str, Any], where: str) -> str:
    ending = content.get("file_ending", DEFAULT_ENDING)
    if ending not in SCAN_SUFFIXES:
        raise DatasetError(
            f"{where}: found file_ending {shown_value(ending)}, expected one of {', '.join(SCAN_SUFFIXES)}; convert "
            "the dataset"
        )
    return str(ending)


def _refuse_other_reader(reader: object, where: str) -> None:
    if reader is not None and reader not in READERS:
        raise DatasetError(
            f"{where}: found overwrite_image_reader_writer {shown_value(reader)}, expected {' or '.join(READERS)}, "
            "which keep the axes as stored; remove it"
        )
