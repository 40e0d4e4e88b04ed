"""Metrics against plain definitions: sets of voxels, and all distances between surfaces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from masksam_deploy.base.errors import EvaluationError
from masksam_deploy.base.volume import Array, Geometry, Volume
from masksam_deploy.evaluation import ClassMetrics, evaluate_case

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SHAPES = st.tuples(*[st.integers(2, 7)] * 3)
SPACINGS = st.tuples(*[st.floats(0.2, 9.0)] * 3)


def placed(array: Array, spacing_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    z, y, x = array.shape
    return Volume(array, Geometry((x, y, z), spacing_zyx[::-1], (0.0, 0.0, 0.0), IDENTITY))


def compared(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> ClassMetrics:
    found, wanted = (placed(mask.astype(np.uint8), spacing_zyx) for mask in (prediction, reference))
    (metrics,) = evaluate_case(found, wanted, {1: "organ"})
    return metrics


def surface(mask: NDArray[np.bool_], spacing_zyx: tuple[float, float, float]) -> NDArray[np.float64]:
    """Millimetre coordinates of the voxels with a face neighbour outside; beyond the border is outside."""
    edge: NDArray[np.bool_] = mask & ~binary_erosion(mask)
    points: NDArray[np.float64] = np.argwhere(edge) * np.array(spacing_zyx)
    return points


def masks(shape: tuple[int, int, int]) -> st.SearchStrategy[NDArray[np.bool_]]:
    return arrays.arrays(np.bool_, shape)


@given(SHAPES.flatmap(lambda shape: st.tuples(masks(shape), masks(shape))))
@settings(max_examples=100, deadline=None)
def test_overlap_is_that_of_sets_of_voxels(pair: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> None:
    prediction, reference = (set(map(tuple, np.argwhere(mask))) for mask in pair)
    metrics = compared(*pair)
    if not prediction and not reference:
        assert metrics.status == "both empty"
        assert metrics.dice is metrics.iou is metrics.hd95_mm is metrics.asd_mm is None
        return
    assert metrics.dice == pytest.approx(2 * len(prediction & reference) / (len(prediction) + len(reference)))
    assert metrics.iou == pytest.approx(len(prediction & reference) / len(prediction | reference))


@given(SHAPES.flatmap(lambda shape: st.tuples(masks(shape), masks(shape))), SPACINGS)
@settings(max_examples=100, deadline=None)
def test_distances_are_those_between_all_surface_voxels(
    pair: tuple[NDArray[np.bool_], NDArray[np.bool_]], spacing: tuple[float, float, float]
) -> None:
    assume(pair[0].any() and pair[1].any())
    metrics = compared(*pair, spacing)
    apart = cdist(surface(pair[0], spacing), surface(pair[1], spacing))
    there, back = apart.min(axis=1), apart.min(axis=0)
    # The distance map is float32.
    assert metrics.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5, abs=1e-5)
    assert metrics.asd_mm == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5, abs=1e-5)


@given(SHAPES.flatmap(lambda shape: st.tuples(masks(shape), masks(shape))), SPACINGS)
@settings(max_examples=40, deadline=None)
def test_swapping_both_sides_changes_only_the_sign_of_the_volume(
    pair: tuple[NDArray[np.bool_], NDArray[np.bool_]], spacing: tuple[float, float, float]
) -> None:
    assume(pair[0].any() and pair[1].any())
    first, second = compared(*pair, spacing), compared(pair[1], pair[0], spacing)
    for name in ("dice", "iou", "hd95_mm", "asd_mm"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-6)
    assert first.volume_difference_ml == -second.volume_difference_ml


def test_a_mask_moved_by_one_slice_is_one_slice_away() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[2:8, 3:9, 3:9] = True
    metrics = compared(np.roll(mask, 1, axis=0), mask, (7.5, 1.0, 1.0))
    assert metrics.hd95_mm == pytest.approx(7.5)
    assert metrics.volume_prediction_ml == pytest.approx(216 * 7.5 / 1000)
    assert metrics.volume_difference_ml == 0


def test_equal_masks_are_perfect_even_where_they_fill_the_volume() -> None:
    metrics = compared(np.ones((3, 4, 5), bool), np.ones((3, 4, 5), bool))
    assert (metrics.dice, metrics.iou, metrics.hd95_mm, metrics.asd_mm) == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(("predicted", "status"), [(False, "missed"), (True, "false positive")])
def test_one_empty_side_counts_as_zero_and_has_no_distances(predicted: bool, status: str) -> None:
    mask, nothing = np.ones((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    metrics = compared(mask, nothing) if predicted else compared(nothing, mask)
    assert metrics.status == status
    assert (metrics.dice, metrics.iou) == (0.0, 0.0)
    assert metrics.hd95_mm is metrics.asd_mm is None


def test_classes_do_not_mix() -> None:
    reference = np.array([[[0, 1, 2], [1, 1, 2]]] * 2, np.uint8)
    prediction = np.where(reference == 2, 1, reference).astype(np.uint8)
    one, two, three = evaluate_case(placed(prediction), placed(reference), {1: "a", 2: "b", 3: "c"})
    assert one.dice == pytest.approx(2 * 6 / (10 + 6))
    assert (two.status, three.status) == ("missed", "both empty")


def test_another_grid_is_refused_naming_the_difference() -> None:
    mask = np.ones((2, 3, 4), np.uint8)
    with pytest.raises(EvaluationError, match=r"spacing \(1\.0, 1\.0, 2\.0\) instead of \(1\.0, 1\.0, 1\.0\)"):
        evaluate_case(placed(mask, (2.0, 1.0, 1.0)), placed(mask), {1: "organ"})
    with pytest.raises(EvaluationError, match="size"):
        evaluate_case(placed(mask), placed(np.ones((3, 3, 4), np.uint8)), {1: "organ"})


def test_scores_in_place_of_labels_are_refused() -> None:
    scores = placed(np.full((2, 2, 2), 0.5, np.float32))
    with pytest.raises(EvaluationError, match="float32"):
        evaluate_case(scores, scores, {1: "organ"})
