"""Reading label maps for a comparison: which values they hold, what these are called, and where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.memory import available_memory
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Array, Geometry, Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.evaluation.errors import EvaluationError
from masksam_deploy.io import read_volume
from masksam_deploy.io.grid import grid_difference
from masksam_deploy.scan_path.report import label_names

_GREATEST = 65535
"""Of the values that label maps of this package may hold."""
_LISTED = 8
_BYTES_PER_VOXEL = 12
"""A scan in float32, its labels, and the masks of one class in both files."""


def read_label_map(path: Path, names: Mapping[int, str] | None = None) -> Volume:
    """Read a label map as uint16 `[Z, Y, X]`.

    Args:
        path: a file that `read_volume` reads.
        names: if given, the only values allowed besides 0.

    Raises:
        ScanError: the file cannot be read.
        EvaluationError: it holds something other than whole numbers from 0 to 65535, or a value without a name.
    """
    free = available_memory()
    volume = read_volume(path, max_voxels=free // _BYTES_PER_VOXEL if free else None)
    scan: Array = volume.channels_czyx[0]
    labels = np.empty(scan.shape, np.uint16)
    bad: set[float] = set()
    for plane, out in zip(scan, labels, strict=True):
        values = np.asarray(plane, np.float32)
        wrong = (values < 0) | (values > _GREATEST) | (values != np.rint(values))
        bad.update(np.unique(values[wrong]).tolist())
        out[...] = np.where(wrong, 0, values)
    if bad:
        raise EvaluationError(
            f"{shown(path)}: found the values {listed(f'{value:g}' for value in sorted(bad))}, expected a label map of "
            f"whole numbers from 0 to {_GREATEST}; is it a scan, or a map of probabilities?"
        )
    if names is not None:
        _check_named(labels, names, path)
    return Volume(labels, volume.geometry)


def label_values(labels: Array) -> list[int]:
    """The values that occur besides 0 in integers from 0 to 65535, ascending."""
    occurs = np.zeros(_GREATEST + 1, bool)
    for plane in labels:
        occurs[plane] = True
    values: list[int] = np.flatnonzero(occurs[1:]).tolist()
    return [value + 1 for value in values]


def read_label_names(path: Path) -> dict[int, str]:
    """What label values are called: from a bundle's folder, or from an nnU-Net `dataset.json`.

    Returns:
        Value -> name, without the background (0), in ascending order.

    Raises:
        BundleError: the folder is no bundle.
        EvaluationError: the file cannot be read, or does not give every name one number of its own.
    """
    # Of a bundle only the manifest is used; hashing the graphs could take longer than the comparison.
    directory = path.is_dir()
    names = label_names(Bundle.load(path, verify=False).manifest.labels) if directory else _names_from_dataset(path)
    found = {value: one_line(name) for value, name in sorted(names.items()) if value != 0}
    if not found:
        raise EvaluationError(f"{shown(path)}: found no label besides the background, expected one; name the classes")
    return found


def check_same_grid(found: Geometry, wanted: Geometry, what: str, of: str = "the reference") -> None:
    """Refuse to compare voxels that do not lie at the same place.

    Raises:
        EvaluationError: says whether size, spacing, origin or direction differ, and both values.
    """
    difference = grid_difference(found, wanted)
    if difference:
        raise EvaluationError(
            f"{what}: found {difference} of {of}, expected the same grid; resample with nearest neighbours, or compare "
            "files that were made from the same scan"
        )


def listed(texts: Iterable[object]) -> str:
    """A few of many texts, and how many more there are."""
    every = [str(text) for text in texts]
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(every[:_LISTED]) + more


def _check_named(labels: NDArray[np.uint16], names: Mapping[int, str], path: Path) -> None:
    unknown = [value for value in label_values(labels) if value not in names]
    if unknown:
        raise EvaluationError(
            f"{shown(path)}: found the label values {listed(unknown)}, expected only 0 and {listed(sorted(names))}, "
            "which --labels names; give the labels that the file was made with"
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of two entries of one name the first would be lost."""
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the name {twice[0]!r} occurs twice")
    return dict(pairs)


def _names_from_dataset(path: Path) -> dict[int, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise EvaluationError(f"{shown(path)}: cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{shown(path)}: found no usable JSON ({one_line(str(error))}), expected an nnU-Net dataset.json or a "
            "bundle's folder; give one of these"
        ) from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise EvaluationError(f'{shown(path)}: found no "labels", expected nnU-Net\'s names and numbers; add them')
    names: dict[int, str] = {}
    for name, value in labels.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _GREATEST:
            raise EvaluationError(
                f"{shown(path)}: found the label {one_line(name)!r} with {one_line(json.dumps(value))}, expected one "
                f"number from 0 to {_GREATEST} for each name (no regions); write a file that names single values"
            )
        if value in names:
            raise EvaluationError(
                f"{shown(path)}: found {one_line(names[value])!r} and {one_line(name)!r} with the same number {value}, "
                "expected one each; correct the file"
            )
        if name == "ignore":
            raise EvaluationError(
                f"{shown(path)}: found an 'ignore' label ({value}), expected references whose every voxel counts; "
                "leave voxels that must be ignored out of both label maps and the name out of the file"
            )
        names[value] = name
    return names
