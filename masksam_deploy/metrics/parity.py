"""The one numeric comparison: how far two results of the same computation are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.bundle.manifest import Decision
from masksam_deploy.scan_path.decision import decide, margins

Float = NDArray[np.floating]


@dataclass(frozen=True)
class ScoreParity:
    """Agreement of two class score arrays `[B, K, ...]`.

    Attributes:
        max_abs_error: largest absolute difference; infinite if anything is not finite.
        agreement: share of voxels of the same class; for regions: that the same class paints, or none.
        decided_agreement: the same over the voxels that the reference scores decide by at least `tie_margin`. The
            others are ties, which float32 rounding decides.
    """

    max_abs_error: float
    agreement: float
    decided_agreement: float


def max_abs_error(actual: Float, expected: Float) -> float:
    """Largest absolute difference; infinite for other shapes or anything not finite."""
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(actual - expected).max(initial=0.0))


def compare_scores(actual: Float, expected: Float, decision: Decision, *, tie_margin: float) -> ScoreParity:
    """Compare class scores `[B, K, ...]` with a reference of the same shape.

    Args:
        actual: the scores to judge.
        expected: the reference.
        decision: the bundle's rule, by which scores become labels.
        tie_margin: see `decision.margins`; voxels that are closer to another label are ties.
    """
    error = max_abs_error(actual, expected)
    if not np.isfinite(error):
        return ScoreParity(error, 0.0, 0.0)
    found, wanted = np.moveaxis(actual, 1, 0), np.moveaxis(expected, 1, 0)
    numbers = np.arange(1, len(wanted) + 1)  # 0 stays for voxels that no region takes
    same = decide(found, numbers, decision) == decide(wanted, numbers, decision)
    decided = margins(wanted, decision) >= tie_margin
    return ScoreParity(error, float(same.mean()), float(same[decided].mean()) if decided.any() else 1.0)
