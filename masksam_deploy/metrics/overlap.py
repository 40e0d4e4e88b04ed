"""How two label maps of one scan, or two sets of masks, overlap: the one home of Dice and IoU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.volume import Array

Counts = NDArray[np.int64]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassOverlap:
    """One class in both label maps.

    Attributes:
        value, name: of the class.
        dice: 2 |A and B| / (|A| + |B|); None if both are empty, 0 if one is.
        voxels_a, voxels_b: of the class.
        disagreeing_voxels: of the class in one map only.
        disagreeing_ml: their volume.
    """

    value: int
    name: str
    dice: float | None
    voxels_a: int
    voxels_b: int
    disagreeing_voxels: int
    disagreeing_ml: float


@dataclass(frozen=True)
class Overlap:
    """Two label maps of one scan.

    Attributes:
        agreement: share of all voxels with the same label in both.
        foreground_agreement: the same over the voxels that either map calls anything but background (0); None if
            there are none.
        disagreeing_voxels: with different labels.
        classes: all but the background.
    """

    agreement: float
    foreground_agreement: float | None
    disagreeing_voxels: int
    classes: tuple[ClassOverlap, ...]


def overlap(a: Array, b: Array, names: Mapping[int, str], voxel_ml: float) -> Overlap:
    """Compare two label maps.

    Args:
        a, b: integers `[Z, Y, X]` of the same shape that hold only 0 and values in `names`.
        names: label value -> name; 0 is the background and no class.
        voxel_ml: volume of one voxel in millilitres.

    Raises:
        ValueError: the shapes differ, or a map holds another value.
    """
    values = _values(names)
    joint = _joint_counts(a, b, values)
    same, total, background = int(np.trace(joint)), int(joint.sum()), int(joint[0, 0])
    shares = _dice(joint)
    classes = []
    for code, value in enumerate(values[1:], start=1):
        in_a, in_b = int(joint[code].sum()), int(joint[:, code].sum())
        differing = in_a + in_b - 2 * int(joint[code, code])
        classes.append(ClassOverlap(value, names[value], shares[code], in_a, in_b, differing, differing * voxel_ml))
    return Overlap(
        agreement=same / total,
        foreground_agreement=(same - background) / (total - background) if total > background else None,
        disagreeing_voxels=total - same,
        classes=tuple(classes),
    )


def dice_per_class(a: Array, b: Array, values: Iterable[int]) -> dict[int, float | None]:
    """Dice of each value but 0 in two label maps; None where both are empty, 0 where one is.

    Args:
        a, b: integers `[Z, Y, X]` of the same shape that hold only 0 and `values`.
        values: of the labels.

    Raises:
        ValueError: the shapes differ, or a map holds another value.
    """
    known = _values(values)
    return dict(zip(known[1:], _dice(_joint_counts(a, b, known))[1:], strict=True))


def mask_dice(a: Masks, b: Masks) -> list[float | None]:
    """Dice of each pair of masks; None where both are empty, 0 where one is.

    Args:
        a, b: masks `[N, ...]` of the same shape; those of one array may overlap.
    """
    return [dice(int((one & other).sum()), int(one.sum()), int(other.sum())) for one, other in zip(a, b, strict=True)]


def dice(common: int, size_a: int, size_b: int) -> float | None:
    """2 |A and B| / (|A| + |B|); None where both are empty."""
    total = size_a + size_b
    return 2 * common / total if total else None


def iou(common: int, size_a: int, size_b: int) -> float | None:
    """|A and B| / |A or B|; None where both are empty."""
    union = size_a + size_b - common
    return common / union if union else None


def _values(values: Iterable[int]) -> list[int]:
    return [0, *sorted(set(values) - {0})]


def _dice(joint: Counts) -> list[float | None]:
    common, in_a, in_b = np.diag(joint).tolist(), joint.sum(axis=1).tolist(), joint.sum(axis=0).tolist()
    return [dice(*counts) for counts in zip(common, in_a, in_b, strict=True)]


def _joint_counts(a: Array, b: Array, values: list[int]) -> Counts:
    """Voxels with `values[i]` in a and `values[j]` in b, `[K, K]`, counted in memory of a few planes."""
    if a.shape != b.shape:
        raise ValueError(f"label maps have the shapes {a.shape} and {b.shape}, expected the same")
    unknown = len(values)
    code_of = np.full(max(values[-1], int(a.max()), int(b.max())) + 1, unknown, np.intp)
    code_of[values] = np.arange(len(values))
    side = unknown + 1
    counts = np.zeros(side * side, np.int64)
    for plane_a, plane_b in zip(a, b, strict=True):
        counts += np.bincount((code_of[plane_a] * side + code_of[plane_b]).ravel(), minlength=side * side)
    joint = counts.reshape(side, side)
    if joint[unknown].any() or joint[:, unknown].any():
        raise ValueError(f"a label map holds other values than {values}")
    return joint[:unknown, :unknown]
