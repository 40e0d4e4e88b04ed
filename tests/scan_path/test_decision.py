"""The rule by which scores become labels, against its plain formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from masksam_deploy.bundle.manifest import Decision
from masksam_deploy.scan_path.decision import class_masks, decide, margins

Scores = NDArray[np.float32]
DECISIONS: Sequence[Decision] = ("argmax", "regions")


def random_scores(classes: int, seed: int, levels: int) -> Scores:
    """Few different numbers, so that there are many ties and zeros."""
    numbers = np.random.default_rng(seed).integers(-levels, levels + 1, (classes, 3, 5, 7))
    return (numbers / 4).astype(np.float32)


def plainly_decided(scores: Scores, palette: NDArray[Any], decision: Decision) -> NDArray[Any]:
    """The definition, without any of the ways in which it is made fast."""
    if decision == "argmax":
        return np.asarray(palette[scores.argmax(axis=0)])
    labels = np.zeros(scores.shape[1:], palette.dtype)
    for score, value in zip(scores, palette, strict=True):
        labels[1 / (1 + np.exp(-score)) > 0.5] = value
    return labels


@settings(deadline=None, max_examples=60)
@given(
    classes=st.sampled_from([1, 2, 3, 256, 257]),
    seed=st.integers(0, 99),
    levels=st.integers(1, 5),
    decision=st.sampled_from(DECISIONS),
)
def test_labels_are_those_of_the_definition(classes: int, seed: int, levels: int, decision: Decision) -> None:
    scores = random_scores(classes, seed, levels)
    palette = np.random.default_rng(seed).permutation(classes).astype(np.uint16) + 1
    found = decide(list(scores), palette, decision)
    assert found.dtype == palette.dtype
    np.testing.assert_array_equal(found, plainly_decided(scores, palette, decision))


def test_next_to_zero_the_float32_sigmoid_decides_and_far_from_it_nothing_overflows() -> None:
    around = np.arange(-400, 401).astype(np.float32) * np.float32(2.0**-30)
    scores = np.concatenate([around, np.array([-1e30, -200, -81, -80, 80, 81, 1e30], np.float32)])[None]
    with np.errstate(over="ignore"):
        expected = plainly_decided(scores, np.array([1]), "regions")
    np.testing.assert_array_equal(decide(scores, np.array([1]), "regions"), expected)
    assert 0 < expected[:801].sum() < 400


@pytest.mark.parametrize("decision", DECISIONS)
def test_masks_are_the_voxels_that_each_class_takes(decision: Decision) -> None:
    scores = random_scores(4, 0, 3)
    masks = class_masks(scores, decision, background=True)
    if decision == "regions":
        np.testing.assert_array_equal(masks, 1 / (1 + np.exp(-scores)) > 0.5)
        np.testing.assert_array_equal(class_masks(scores, decision, background=False), masks)
    else:
        np.testing.assert_array_equal(masks, [scores.argmax(axis=0) == index for index in range(4)])
        np.testing.assert_array_equal(class_masks(scores, decision, background=False), masks[1:])


@settings(deadline=None, max_examples=60)
@given(classes=st.integers(1, 5), seed=st.integers(0, 999), decision=st.sampled_from(DECISIONS))
def test_no_change_below_the_margin_changes_a_label(classes: int, seed: int, decision: Decision) -> None:
    """Two scores may both move: of `argmax`, each by less than half the margin."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((classes, 200)).astype(np.float32)
    allowed = margins(scores, decision) * (0.499 if decision == "argmax" else 0.999)
    change = generator.uniform(-1, 1, scores.shape) * np.minimum(allowed, 1e3)
    palette = np.arange(1, classes + 1)
    before, after = (decide(s, palette, decision) for s in (scores, scores + change.astype(np.float32)))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("decision", DECISIONS)
def test_a_change_of_the_margin_changes_the_label(decision: Decision) -> None:
    scores = np.array([[3.0, -2.0, -2.0, 1.0], [1.0, 0.5, -3.0, -4.0], [0.0, -1.0, -0.25, 0.5]], np.float32)
    expected = {"argmax": [2.0, 1.5, 1.75, 0.5], "regions": [0.0, 0.5, 0.25, 0.5]}
    np.testing.assert_array_equal(margins(scores, decision), expected[decision])


def test_of_a_single_class_no_change_makes_another_label() -> None:
    assert np.isposinf(margins(np.zeros((1, 4), np.float32), "argmax")).all()
