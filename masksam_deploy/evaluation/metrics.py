"""Comparing a predicted label map with its reference: overlap, surface distances and volumes of every class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from masksam_deploy.base.errors import EvaluationError
from masksam_deploy.base.volume import Volume
from masksam_deploy.metrics.label_maps import check_same_grid
from masksam_deploy.metrics.overlap import dice, iou
from masksam_deploy.metrics.surfaces import Mask, surface_distances

Status: TypeAlias = Literal["both present", "missed", "false positive", "both empty"]

DEFINITIONS: dict[str, str] = {
    "dice": "2 |P and R| / (|P| + |R|), in voxels",
    "iou": "|P and R| / |P or R|, in voxels",
    "surface": "voxels of a mask that have at least one of their six face neighbours outside it; beyond the image's "
    "border is outside",
    "hd95_mm": "the greater of the two directed 95th percentiles (linear interpolation) of the distances from each "
    "surface voxel to the nearest surface voxel of the other mask, between voxel centres, in mm",
    "asd_mm": "average symmetric surface distance: the mean of the same distances, both directions pooled, in mm",
    "volume_difference_ml": "prediction minus reference",
    "both present": "P and R are not empty: everything counts",
    "missed": "R is not empty and P is: Dice and IoU count as 0, there are no distances",
    "false positive": "P is not empty and R is: Dice and IoU count as 0, there are no distances",
    "both empty": "P and R are empty: nothing is defined, and nothing enters any mean",
}
"""The definition of every figure, for reports; P is the prediction, R the reference."""


@dataclass(frozen=True)
class ClassMetrics:
    """The figures of one class in one case; a figure that is not defined (see `DEFINITIONS`) is None, never NaN.

    Attributes:
        value, name: the label value and the name of the class.
        status: whether the class occurs in the prediction and in the reference.
        dice, iou: from 0 to 1; None if both are empty.
        hd95_mm, asd_mm: surface distances in mm; None unless both label maps have the class.
        volume_prediction_ml, volume_reference_ml: volumes in millilitres; 0 if empty.
    """

    value: int
    name: str
    status: Status
    dice: float | None
    iou: float | None
    hd95_mm: float | None
    asd_mm: float | None
    volume_prediction_ml: float
    volume_reference_ml: float

    @property
    def volume_difference_ml(self) -> float:
        """Volume of the prediction minus volume of the reference, in millilitres."""
        return self.volume_prediction_ml - self.volume_reference_ml


def evaluate_case(prediction: Volume, reference: Volume, classes: Mapping[int, str]) -> tuple[ClassMetrics, ...]:
    """Compare two label maps, class by class.

    Distances are computed inside the common bounding box of both masks, so that memory and time depend on the size of
    the structure and not on the size of the scan.

    Args:
        prediction: integers `[Z, Y, X]`.
        reference: integers `[Z, Y, X]` on the same grid.
        classes: label value -> name; other values in the label maps count as background.

    Returns:
        One entry per class, in the order of `classes`; `DEFINITIONS` says what the figures are. HD95 is the
        maximum of the two directed 95th percentiles, as in MONAI; the average surface distance is the mean over
        both directions pooled.

    Raises:
        EvaluationError: the grids differ, or an array does not hold integers `[Z, Y, X]`.
    """
    check_same_grid(prediction.geometry, reference.geometry, "the prediction")
    for volume, what in ((prediction, "prediction"), (reference, "reference")):
        if volume.array.ndim != 3 or volume.array.dtype.kind not in "iub":
            raise EvaluationError(
                f"the {what}: found an array of {volume.array.dtype} with {volume.array.ndim} axes, expected integers "
                "with 3 axes [Z, Y, X]; convert it"
            )
    spacing, voxel_ml = reference.geometry.spacing_zyx, reference.geometry.voxel_volume_ml
    return tuple(
        _class_metrics(prediction.array == value, reference.array == value, spacing, voxel_ml, value, name)
        for value, name in classes.items()
    )


def absent(value: int, name: str) -> ClassMetrics:
    """The figures of a class that is neither in the prediction nor in the reference.

    Args:
        value, name: the label value and the name of the class.
    """
    return ClassMetrics(value, name, "both empty", None, None, None, None, 0.0, 0.0)


def _class_metrics(
    prediction: Mask,
    reference: Mask,
    spacing_zyx: tuple[float, float, float],
    voxel_ml: float,
    value: int,
    name: str,
) -> ClassMetrics:
    box = _bounding_box(prediction | reference)
    if box is None:
        return absent(value, name)
    prediction, reference = prediction[box], reference[box]
    in_prediction, in_reference = int(prediction.sum()), int(reference.sum())
    common = int((prediction & reference).sum())
    status: Status = "both present"
    hd95 = asd = None
    if in_prediction == 0:
        status = "missed"
    elif in_reference == 0:
        status = "false positive"
    else:
        hd95, asd = surface_distances(prediction, reference, spacing_zyx)
    return ClassMetrics(
        value,
        name,
        status,
        dice=dice(common, in_prediction, in_reference),
        iou=iou(common, in_prediction, in_reference),
        hd95_mm=hd95,
        asd_mm=asd,
        volume_prediction_ml=in_prediction * voxel_ml,
        volume_reference_ml=in_reference * voxel_ml,
    )


def _bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if occupied.size == 0:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)
