"""The summary of every class over all cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from masksam_deploy.evaluation.metrics import ClassMetrics


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases.

    Attributes:
        value, name: the label value and the name of the class.
        counted: number of cases in the means of Dice, IoU and volume difference: all but those empty on both sides.
        with_distances: number of cases in the means of the distances: those in which both sides have the class.
        both_empty, missed, false_positive: numbers of such cases; the last two kinds count with a Dice of 0.
        mean_dice, median_dice, min_dice, mean_iou: None if no case counts.
        mean_hd95_mm, mean_asd_mm: None if no case has distances.
        mean_absolute_volume_difference_ml: None if no case counts.
    """

    value: int
    name: str
    counted: int
    with_distances: int
    both_empty: int
    missed: int
    false_positive: int
    mean_dice: float | None
    median_dice: float | None
    min_dice: float | None
    mean_iou: float | None
    mean_hd95_mm: float | None
    mean_asd_mm: float | None
    mean_absolute_volume_difference_ml: float | None


def summarize(metrics: Sequence[ClassMetrics]) -> ClassSummary:
    """Summarize one class over all cases.

    Args:
        metrics: the figures of that class, one entry per case, at least one.

    Returns:
        Means, medians and counts.
    """
    counted = [entry for entry in metrics if entry.status != "both empty"]
    dice = _defined(entry.dice for entry in counted)
    hd95 = _defined(entry.hd95_mm for entry in counted)
    return ClassSummary(
        value=metrics[0].value,
        name=metrics[0].name,
        counted=len(counted),
        with_distances=len(hd95),
        both_empty=len(metrics) - len(counted),
        missed=sum(entry.status == "missed" for entry in metrics),
        false_positive=sum(entry.status == "false positive" for entry in metrics),
        mean_dice=_mean(dice),
        median_dice=median(dice) if dice else None,
        min_dice=min(dice, default=None),
        mean_iou=_mean(_defined(entry.iou for entry in counted)),
        mean_hd95_mm=_mean(hd95),
        mean_asd_mm=_mean(_defined(entry.asd_mm for entry in counted)),
        mean_absolute_volume_difference_ml=_mean([abs(entry.volume_difference_ml) for entry in counted]),
    )


def _defined(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
