"""The numeric comparison that decides whether a bundle is written."""

from __future__ import annotations

import numpy as np
import pytest

from masksam_deploy.metrics.parity import compare_scores, max_abs_error


def scores(*classes: list[float]) -> np.ndarray:
    """One batch element, one score per voxel and class."""
    return np.array([classes], dtype=np.float32)


def test_equal_scores_agree_fully() -> None:
    parity = compare_scores(scores([1, 0], [0, 1]), scores([1, 0], [0, 1]), tie_margin=1e-4)
    assert (parity.max_abs_error, parity.argmax_agreement, parity.decided_agreement) == (0.0, 1.0, 1.0)


def test_a_tie_that_rounding_decides_is_told_apart_from_a_disagreement() -> None:
    expected = scores([0.5, 1.0], [0.50001, 0.0])
    tie_broken = scores([0.50001, 1.0], [0.5, 0.0])
    parity = compare_scores(tie_broken, expected, tie_margin=1e-4)
    assert parity.argmax_agreement == 0.5
    assert parity.decided_agreement == 1.0
    strict = compare_scores(tie_broken, expected, tie_margin=1e-6)
    assert strict.decided_agreement == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_anything_not_finite_is_infinitely_wrong(bad: float) -> None:
    assert max_abs_error(scores([bad]), scores([0])) == np.inf
    parity = compare_scores(scores([bad], [0]), scores([bad], [0]), tie_margin=1e-4)
    assert (parity.max_abs_error, parity.decided_agreement) == (np.inf, 0.0)


def test_other_shapes_are_infinitely_wrong() -> None:
    assert max_abs_error(scores([1, 2]), scores([1])) == np.inf


def test_one_class_always_agrees() -> None:
    assert compare_scores(scores([1, 2]), scores([2, 1]), tie_margin=1e-4).decided_agreement == 1.0
