"""The numeric comparison that decides whether a bundle is written."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from masksam_deploy.metrics.parity import compare_scores, max_abs_error


def scores(*classes: list[float]) -> np.ndarray:
    """One batch element, one score per voxel and class."""
    return np.array([classes], dtype=np.float32)


def test_equal_scores_agree_fully() -> None:
    parity = compare_scores(scores([1, 0], [0, 1]), scores([1, 0], [0, 1]), "argmax", tie_margin=1e-4)
    assert (parity.max_abs_error, parity.agreement, parity.decided_agreement) == (0.0, 1.0, 1.0)


def test_a_tie_that_rounding_decides_is_told_apart_from_a_disagreement() -> None:
    expected = scores([0.5, 1.0], [0.50001, 0.0])
    tie_broken = scores([0.50001, 1.0], [0.5, 0.0])
    parity = compare_scores(tie_broken, expected, "argmax", tie_margin=1e-4)
    assert parity.agreement == 0.5
    assert parity.decided_agreement == 1.0
    strict = compare_scores(tie_broken, expected, "argmax", tie_margin=1e-6)
    assert strict.decided_agreement == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_anything_not_finite_is_infinitely_wrong(bad: float) -> None:
    assert max_abs_error(scores([bad]), scores([0])) == np.inf
    parity = compare_scores(scores([bad], [0]), scores([bad], [0]), "argmax", tie_margin=1e-4)
    assert (parity.max_abs_error, parity.decided_agreement) == (np.inf, 0.0)


def test_other_shapes_are_infinitely_wrong() -> None:
    assert max_abs_error(scores([1, 2]), scores([1])) == np.inf


def overlapping_regions(apart: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two regions whose scores differ by `apart`, and the same scores as another computation rounds them."""
    generator = np.random.default_rng(0)
    outer = generator.uniform(-3, 3, (1, 1, 4, 64, 64))
    expected = np.concatenate([outer, outer + generator.choice([-apart, apart], outer.shape)], axis=1)
    return (expected + generator.uniform(-4e-4, 4e-4, expected.shape)).astype(np.float32), expected.astype(np.float32)


def test_regions_with_almost_the_same_scores_agree_where_each_is_decided() -> None:
    """Which of them is higher means nothing: both take the voxel, or neither does."""
    actual, expected = overlapping_regions(apart=3e-4)
    parity = compare_scores(actual, expected, "regions", tie_margin=1e-3)
    assert parity.decided_agreement == 1.0
    assert 0.999 < parity.agreement <= 1.0
    assert compare_scores(actual, expected, "argmax", tie_margin=1e-4).decided_agreement < 0.9


def test_a_region_that_loses_a_voxel_it_clearly_took_is_a_disagreement() -> None:
    expected = scores([2.0, 2.0], [-1.0, -1.0])
    parity = compare_scores(scores([2.0, -2.0], [-1.0, -1.0]), expected, "regions", tie_margin=1e-4)
    assert parity.decided_agreement == 0.5


def test_a_region_score_next_to_zero_is_a_tie_unless_a_later_region_hides_it() -> None:
    expected = scores([1e-6, 1e-6], [-1.0, 1.0])
    parity = compare_scores(scores([-1e-6, -1e-6], [-1.0, -1.0]), expected, "regions", tie_margin=1e-4)
    assert parity.agreement == 0.0
    assert parity.decided_agreement == 0.0  # of the second voxel, which the later region decides


def test_one_class_always_agrees() -> None:
    assert compare_scores(scores([1, 2]), scores([2, 1]), "argmax", tie_margin=1e-4).decided_agreement == 1.0
