"""Label maps to compare: read from files, checked for their values and grids, and kept small while they wait."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import EvaluationError
from masksam_deploy.base.memory import available_memory
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Array, Geometry, Volume
from masksam_deploy.io import read_volume
from masksam_deploy.io.grid import grid_difference

GREATEST_LABEL = 65535
"""Of the values that label maps of this package may hold."""
_LISTED = 8
_BYTES_PER_VOXEL = 12
"""A scan in float32, its labels, and the masks of one class in both files."""


@dataclass(frozen=True)
class PackedLabels:
    """A label map that waits, compressed to about a hundredth of its size.

    Attributes:
        geometry: of the label map.
        dtype: of its array.
        data: the array `[Z, Y, X]`, compressed.
    """

    geometry: Geometry
    dtype: np.dtype[Any]
    data: bytes

    @classmethod
    def of(cls, labels: Volume) -> PackedLabels:
        """Compress a label map."""
        array = np.ascontiguousarray(labels.array)
        return cls(labels.geometry, array.dtype, zlib.compress(array.data, level=1))

    @property
    def array(self) -> Array:
        """The label map's array `[Z, Y, X]`, unpacked each time."""
        return np.frombuffer(zlib.decompress(self.data), self.dtype).reshape(self.geometry.shape_zyx)


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
        wrong = (values < 0) | (values > GREATEST_LABEL) | (values != np.rint(values))
        bad.update(np.unique(values[wrong]).tolist())
        out[...] = np.where(wrong, 0, values)
    if bad:
        raise EvaluationError(
            f"{shown(path)}: found the values {listed(f'{value:g}' for value in sorted(bad))}, expected a label map of "
            f"whole numbers from 0 to {GREATEST_LABEL}; is it a scan, or a map of probabilities?"
        )
    if names is not None:
        _check_named(labels, names, path)
    return Volume(labels, volume.geometry)


def label_values(labels: Array) -> list[int]:
    """The values that occur besides 0 in integers from 0 to 65535, ascending."""
    occurs = np.zeros(GREATEST_LABEL + 1, bool)
    for plane in labels:
        occurs[plane] = True
    values: list[int] = np.flatnonzero(occurs[1:]).tolist()
    return [value + 1 for value in values]


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
