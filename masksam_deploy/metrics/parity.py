"""The one numeric comparison: how far two results of the same computation are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


@dataclass(frozen=True)
class ScoreParity:
    """Agreement of two class score arrays `[B, K, ...]`.

    Attributes:
        max_abs_error: largest absolute difference; infinite if anything is not finite.
        argmax_agreement: share of voxels with the same best class.
        decided_agreement: the same over the voxels whose two best reference scores are at least `tie_margin`
            apart. The others are ties, which float32 rounding decides.
    """

    max_abs_error: float
    argmax_agreement: float
    decided_agreement: float


def max_abs_error(actual: Float, expected: Float) -> float:
    """Largest absolute difference; infinite for other shapes or anything not finite."""
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(actual - expected).max(initial=0.0))


def compare_scores(actual: Float, expected: Float, *, tie_margin: float) -> ScoreParity:
    """Compare class scores `[B, K, ...]` with a reference of the same shape."""
    error = max_abs_error(actual, expected)
    if not np.isfinite(error):
        return ScoreParity(error, 0.0, 0.0)
    same = actual.argmax(axis=1) == expected.argmax(axis=1)
    decided = _margin(expected) >= tie_margin
    return ScoreParity(error, float(same.mean()), float(same[decided].mean()) if decided.any() else 1.0)


def _margin(scores: Float) -> Float:
    """Best minus second best score along axis 1."""
    if scores.shape[1] == 1:
        return np.full_like(scores[:, 0], np.inf)
    best = np.partition(scores, -2, axis=1)
    margin: Float = best[:, -1] - best[:, -2]
    return margin
