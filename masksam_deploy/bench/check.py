"""Correctness first: what a contender computes, held to the float32 graphs in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Volume
from masksam_deploy.bench.inputs import BenchScan, Window
from masksam_deploy.bench.results import Check
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Decision
from masksam_deploy.engines.gate import LIMITS, CaseResult, Verdict
from masksam_deploy.metrics.label_maps import check_same_grid, read_label_map
from masksam_deploy.metrics.overlap import dice_per_class, mask_dice, overlap
from masksam_deploy.metrics.parity import compare_scores
from masksam_deploy.runtimes import Network
from masksam_deploy.runtimes.spec import Precision
from masksam_deploy.scan_path.decision import class_masks
from masksam_deploy.scan_path.report import label_names

Scores = NDArray[np.float32]


class WindowLimits(NamedTuple):
    """What windows must show.

    Attributes:
        tie: voxels whose class scores in float32 are closer than this to another label are ties, which rounding
            decides; see `decision.margins`.
        agreement: least share of the other voxels with the same class; for regions, painted by the same one.
        dice: least mean Dice over the classes that occur, all voxels counted; each region with all that it takes, also
            where a later one hides it.
        score_error: of an untrained network in place of Dice: largest error of the class scores, as a share of how much
            they vary within the windows (both as Euclidean norms).
    """

    tie: float
    agreement: float
    dice: float
    score_error: float


WINDOW_LIMITS: dict[Precision, WindowLimits] = {
    "fp32": WindowLimits(1e-4, 0.9999, 0.997, 1e-3),
    "fp16": WindowLimits(1e-2, 0.999, 0.99, 0.02),
    "bf16": WindowLimits(5e-2, 0.995, 0.97, 0.1),
    "int8": WindowLimits(5e-2, 0.99, 0.95, 0.25),
}
"""A window is a small sample: looser than the Dice gate (`engines.gate.LIMITS`), which judges the whole scan.

A tie is about ten times the noise that a precision leaves on class scores, which go from 0 to the number of queries.
MaskSAM-Tiny-LV in int8, whose Dice is right, has a score error of 0.20.
"""


@dataclass(frozen=True)
class Expected:
    """What the float32 graphs give.

    Attributes:
        windows: class scores `[1, K, T, P, P]` of each window.
        labels: the label map of the scan, if one is measured.
        reference: a true label map of it, if there is one.
    """

    windows: Sequence[Scores]
    labels: Volume | None = None
    reference: Volume | None = field(default=None)


def expected_of(
    network: Network, windows: Sequence[Window], labels: Volume | None, scan: BenchScan | None, bundle: Bundle
) -> Expected:
    """Run the float32 graphs on the windows, and read the scan's reference label map."""
    scores = [network(window).copy() for window in windows]
    if labels is None or scan is None or scan.reference is None:
        return Expected(scores, labels)
    reference = read_label_map(scan.reference, label_names(bundle.manifest.labels))
    check_same_grid(reference.geometry, labels.geometry, shown(scan.reference), "its scan")
    return Expected(scores, labels, reference)


def check_windows(
    network: Network,
    windows: Sequence[Window],
    expected: Expected,
    precision: Precision,
    decision: Decision,
    *,
    trained: bool = True,
) -> Check:
    """Compare class scores window by window; the worst window decides on ties, all together on Dice.

    A network that fails is a network that disagrees. The classes of one that was not `trained` mean nothing, and whole
    planes of them can be near ties: the scores themselves are judged in Dice's place.

    Args:
        network: to be judged.
        windows: normalised images, `[1, C, T, P, P]` each.
        expected: what the float32 graphs give.
        precision: of the network; says what is allowed.
        decision: the bundle's rule, by which scores become labels.
        trained: whether the classes mean something.
    """
    limits = WINDOW_LIMITS[precision]
    try:
        scores = [network(window).copy() for window in windows]
    except MaskSamError as error:
        return Check(passed=False, problem=f"it failed: {one_line(str(error), 400)}")
    parities = [
        compare_scores(found, wanted, decision, tie_margin=limits.tie)
        for found, wanted in zip(scores, expected.windows, strict=True)
    ]
    agreement = min(parity.decided_agreement for parity in parities)
    dice, off = _window_dice(scores, expected.windows, decision), _score_error(scores, expected.windows)
    problem = None
    if not agreement >= limits.agreement:
        problem = (
            f"in a window only {agreement:.4%} of the voxels have the class of the float32 graphs, expected at least "
            f"{limits.agreement:.2%} (ties closer than {limits.tie:g} left out)"
        )
    elif trained and dice is not None and dice < limits.dice:
        problem = f"the windows' mean Dice with the float32 graphs is {dice:.4f}, expected at least {limits.dice:g}"
    elif not trained and not off <= limits.score_error:
        problem = (
            f"class scores are off by {off:.4f} of how much those of the float32 graphs vary, expected at most "
            f"{limits.score_error:g}"
        )
    return Check(
        passed=problem is None,
        problem=problem,
        decided_agreement=agreement,
        window_dice=dice if trained else None,
        score_error=off if np.isfinite(off) else None,
    )


def check_scan(before: Check, labels: Volume, expected: Expected, bundle: Bundle, precision: Precision) -> Check:
    """Add the Dice gate's judgement of the whole scan to what the windows showed."""
    assert expected.labels is not None  # a scan was segmented
    names = label_names(bundle.manifest.labels)
    found = overlap(expected.labels.array, labels.array, names, labels.geometry.voxel_volume_ml)

    def dice(a: Volume, b: Volume) -> dict[str, float | None]:
        return {names[value]: share for value, share in dice_per_class(a.array, b.array, names).items()}

    truth = expected.reference
    case = CaseResult(
        "scan",
        found.agreement,
        {entry.name: entry.dice for entry in found.classes},
        dice(expected.labels, truth) if truth else None,
        dice(labels, truth) if truth else None,
    )
    if not case.losses():
        # Nothing to segment on either side: the voxels agree, and the windows were judged.
        return before.model_copy(update={"scan": {"agreement": found.agreement, "classes": 0}})
    verdict = Verdict(LIMITS[precision], (case,))
    problem = None
    if not verdict.passed:
        name, loss = verdict.worst_class
        against = "the reference label map" if truth else "the label map of the float32 graphs"
        problem = (
            f"on the scan, Dice with {against} falls by {verdict.mean_loss:.4f}, by {loss:.4f} for '{one_line(name)}', "
            f"expected at most {verdict.limits.mean:g} and {verdict.limits.worst_class:g} for a class"
        )
    return before.model_copy(update={"passed": verdict.passed, "problem": problem, "scan": verdict.to_dict()})


def _window_dice(scores: Sequence[Scores], expected: Sequence[Scores], decision: Decision) -> float | None:
    """Mean Dice over all classes, the background too, that occur in the windows together."""
    found, wanted = (
        np.concatenate([_masks(window, decision) for window in side], axis=1) for side in (scores, expected)
    )
    dice = [value for value in mask_dice(found, wanted) if value is not None]
    return fmean(dice) if dice else None


def _masks(scores: Scores, decision: Decision) -> NDArray[np.bool_]:
    """Of class scores `[1, K, T, P, P]`, `[K, 1, T, P, P]`."""
    return class_masks(np.moveaxis(scores, 1, 0), decision, background=True)


def _score_error(scores: Sequence[Scores], expected: Sequence[Scores]) -> float:
    """Norm of the difference over that of what varies in a window; infinite where nothing varies and they differ."""
    difference = sum(float(np.square(found - wanted).sum()) for found, wanted in zip(scores, expected, strict=True))
    varying = sum(float(np.square(wanted - wanted.mean(axis=(2, 3, 4), keepdims=True)).sum()) for wanted in expected)
    if not varying:
        return 0.0 if difference == 0 else float("inf")
    return float(np.sqrt(difference / varying))
