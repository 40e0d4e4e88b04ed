"""Costs against plain definitions, assignments against all permutations."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from masksam_export.families.masksam.training.matching import (
    ACDC_WEIGHTS,
    AMOS_WEIGHTS,
    Outputs,
    frame_costs,
    giou,
    match,
    pairwise_bce,
    pairwise_dice,
)
from masksam_export.families.masksam.training.points import PointSampling, sample, uncertain_points
from masksam_export.families.masksam.training.targets import frame_targets

SIDE, QUERIES, CLASSES = 8, 5, 3
ALL_POINTS = PointSampling(count=64)


def random_outputs(seed: int, frames: int = 2) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    corners = torch.rand(frames, QUERIES, 2, 2, generator=generator).sort(dim=2).values
    return Outputs(
        logits=draw(frames, QUERIES, CLASSES + 1),
        masks=3 * draw(frames, QUERIES, SIDE, SIDE),
        aux_masks=3 * draw(frames, QUERIES, SIDE, SIDE),
        aux_boxes=corners.flatten(2),
    )


def random_labels(seed: int, frames: int = 2) -> torch.Tensor:
    return torch.randint(0, CLASSES, (1, frames, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def test_weights_are_the_documented_ones() -> None:
    assert vars(AMOS_WEIGHTS) == {
        "classes": 0.2, "mask": 1.2, "dice": 1.2, "aux_mask": 0.5, "aux_dice": 0.5, "box": 0.5, "giou": 0.2,
    }  # fmt: skip
    assert vars(ACDC_WEIGHTS) == {**vars(AMOS_WEIGHTS), "mask": 1.5, "dice": 1.5}


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_the_assignment_is_the_cheapest_of_all(seed: int) -> None:
    outputs, labels = random_outputs(seed), random_labels(seed)
    targets = frame_targets(labels)
    found = match(outputs, targets, ACDC_WEIGHTS, ALL_POINTS, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    for index, (target, pairs) in enumerate(zip(targets, found, strict=True)):
        costs = frame_costs(outputs, index, target, ACDC_WEIGHTS, ALL_POINTS, generator)
        chosen = costs[pairs.queries, pairs.targets].sum()
        everything = itertools.permutations(range(QUERIES), len(target))
        best = min(sum(costs[q, t] for t, q in enumerate(queries)) for queries in everything)
        assert sorted(pairs.targets.tolist()) == list(range(len(target)))
        assert float(chosen) == pytest.approx(float(best), abs=1e-5)  # sums of float32 in another order


def test_a_query_that_predicts_the_target_is_matched_to_it() -> None:
    labels = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.long)
    labels[..., 2:5, 2:5] = 2
    (target,) = frame_targets(labels)
    outputs = random_outputs(0, frames=1)
    masks = torch.full((1, QUERIES, SIDE, SIDE), -8.0)
    masks[0, 4] = 16 * target.masks[1] - 8
    masks[0, 1] = 16 * target.masks[0] - 8
    perfect = Outputs(outputs.logits, masks, masks, outputs.aux_boxes)
    (pairs,) = match(perfect, [target], ACDC_WEIGHTS, ALL_POINTS, torch.Generator().manual_seed(0))
    assert dict(zip(pairs.targets.tolist(), pairs.queries.tolist(), strict=True)) == {0: 1, 1: 4}


def test_more_targets_than_queries_is_refused() -> None:
    outputs = random_outputs(0, frames=1)
    few = Outputs(outputs.logits[:, :2], outputs.masks[:, :2], outputs.aux_masks[:, :2], outputs.aux_boxes[:, :2])
    with pytest.raises(ValueError, match="3 classes but the network has 2 queries"):
        match(few, frame_targets(random_labels(0, frames=1)), ACDC_WEIGHTS, ALL_POINTS, torch.Generator())


def test_a_frame_without_targets_matches_nothing() -> None:
    padding = torch.full((1, 1, SIDE, SIDE), -1)
    (pairs,) = match(random_outputs(0, frames=1), frame_targets(padding), ACDC_WEIGHTS, ALL_POINTS, torch.Generator())
    assert len(pairs.queries) == len(pairs.targets) == 0


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_pairwise_costs_equal_torch_pair_by_pair(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    wanted = torch.randint(0, 2, (2, 20), generator=generator).double()
    bce, dice = pairwise_bce(logits, wanted), pairwise_dice(logits, wanted)
    for q, n in itertools.product(range(3), range(2)):
        assert float(bce[q, n]) == pytest.approx(
            float(functional.binary_cross_entropy_with_logits(logits[q], wanted[n])), rel=1e-9
        )
        p = logits[q].sigmoid()
        smoothed = 1 - (2 * (p * wanted[n]).sum() + 1) / (p.sum() + wanted[n].sum() + 1)
        assert float(dice[q, n]) == pytest.approx(float(smoothed), rel=1e-9)


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4), min_size=2, max_size=2))
@settings(max_examples=100, deadline=None)
def test_giou_counts_pixels_right(corners: list[tuple[int, int, int, int]]) -> None:
    """On whole-number boxes, areas are numbers of unit squares."""
    boxes = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners]
    canvas = np.zeros((2, 8, 8), bool)
    for layer, (x1, y1, x2, y2) in zip(canvas, boxes, strict=True):
        layer[y1:y2, x1:x2] = True
    union, overlap = (canvas[0] | canvas[1]).sum(), (canvas[0] & canvas[1]).sum()
    rows, columns = np.where(canvas[0] | canvas[1])
    hull = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    first, second = (torch.tensor([box], dtype=torch.float64) for box in boxes)
    assert float(giou(first, second)) == pytest.approx(overlap / union - (hull - union) / hull)


def test_giou_of_points_is_finite() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    value = giou(point, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


def test_points_at_pixel_centres_read_the_pixels() -> None:
    mask = torch.arange(12.0).reshape(1, 3, 4)
    y, x = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(4) + 0.5) / 4, indexing="ij")
    points = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    assert torch.allclose(sample(mask, points), mask.reshape(1, -1), atol=1e-5)


def test_points_gather_where_the_prediction_is_unsure() -> None:
    logits = torch.full((1, 32, 32), 9.0)
    logits[:, :, 8:24] = 0.1  # the middle half
    points = uncertain_points(logits, PointSampling(count=400), torch.Generator().manual_seed(0))
    assert points.shape == (1, 400, 2)
    assert (points >= 0).all()
    assert (points <= 1).all()
    # Of 800 candidates 400 lie there and 300 are chosen; of the 100 uniform ones half do. (Some of the chosen lie on
    # the very rim instead, where sampling mixes in zeros from outside.)
    assert float(((points[..., 0] - 0.5).abs() < 0.26).float().mean()) > 0.8
