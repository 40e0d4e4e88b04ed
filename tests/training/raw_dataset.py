"""Writes small nnU-Net raw datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

Spacing = tuple[float, float, float]
ENDING = ".nii.gz"


@dataclass(frozen=True, eq=False)
class Generated:
    """A case to write: scan `[C, Z, Y, X]`, labels `[Z, Y, X]`."""

    scan: NDArray[Any]
    labels: NDArray[Any]
    spacing_zyx: Spacing = (1.0, 1.0, 1.0)


def generated(
    seed: int = 0,
    shape: tuple[int, int, int] = (6, 8, 10),
    *,
    channels: int = 1,
    classes: int = 3,
    spacing: Spacing = (1.0, 1.0, 1.0),
) -> Generated:
    """Noise, every class somewhere, no voxel zero."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, shape).astype(np.uint8)
    labels.flat[:classes] = np.arange(classes)
    scan = (random.normal(size=(channels, *shape)) * 20 + 200 + 50 * labels).astype(np.float32)
    return Generated(scan, labels, spacing)


def description(channels: Sequence[str] = ("MRI",), classes: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {"background" if value == 0 else f"part {value}": value for value in range(classes)},
        "file_ending": ENDING,
        **more,
    }


def write_dataset(
    root: Path, cases: Mapping[str, Generated], content: Mapping[str, Any] | None = None, ending: str = ENDING
) -> Path:
    """A dataset with these cases; its description fits the first case unless given."""
    first = next(iter(cases.values()))
    names = [f"channel {index}" for index in range(len(first.scan))]
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    chosen = description(names, int(first.labels.max()) + 1) if content is None else content
    (root / "dataset.json").write_text(json.dumps(chosen))
    for name, case in cases.items():
        write_case(root, name, case, ending)
    return root


def write_case(root: Path, name: str, case: Generated, ending: str = ENDING) -> None:
    for index, channel in enumerate(case.scan):
        write_image(root / "imagesTr" / f"{name}_{index:04d}{ending}", channel, case.spacing_zyx)
    write_image(root / "labelsTr" / f"{name}{ending}", case.labels, case.spacing_zyx)


def write_image(
    path: Path,
    array: NDArray[Any],
    spacing_zyx: Spacing = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing_zyx[::-1])
    image.SetOrigin(origin)
    SimpleITK.WriteImage(image, str(path))
