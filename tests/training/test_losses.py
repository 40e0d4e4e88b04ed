"""The objective against a plain re-statement, and what it must reward."""

from math import log

import pytest
import torch
from torch import Tensor

from masksam_export.families.masksam.training.losses import NO_OBJECT_WEIGHT, Objective, class_loss
from masksam_export.families.masksam.training.matching import ACDC_WEIGHTS, Match, Outputs
from masksam_export.families.masksam.training.points import PointSampling
from masksam_export.families.masksam.training.targets import FrameTargets, frame_targets
from tests.training.test_matching import CLASSES, QUERIES, SIDE, random_labels, random_outputs


def objective(seed: int = 0) -> Objective:
    return Objective(ACDC_WEIGHTS, PointSampling(count=SIDE * SIDE // 2), torch.Generator().manual_seed(seed))


def perfect(labels: Tensor) -> Outputs:
    """Queries 0..n-1 of every frame say exactly what the targets are, the others "no object"."""
    frames = frame_targets(labels)
    logits = torch.zeros(len(frames), QUERIES, CLASSES + 1)
    logits[..., CLASSES] = 30.0
    side = labels.shape[-1]
    masks = torch.full((len(frames), QUERIES, side, side), -30.0)
    boxes = torch.zeros(len(frames), QUERIES, 4)
    for row, target in enumerate(frames):
        for query, (label, mask, box) in enumerate(zip(target.labels, target.masks, target.boxes, strict=True)):
            logits[row, query, CLASSES], logits[row, query, label] = 0.0, 30.0
            masks[row, query] = 60 * mask - 30
            boxes[row, query] = box
    return Outputs(logits, masks, masks.clone(), boxes)


def blocks() -> Tensor:
    """Labels whose borders are far from most points, so that bilinear sampling hardly matters."""
    labels = torch.zeros(1, 2, SIDE, SIDE, dtype=torch.long)
    labels[0, 0, :, 4:] = 1
    labels[0, 1, :4] = 2
    return labels


def test_a_perfect_prediction_costs_nothing_but_the_blur_of_its_borders() -> None:
    labels = blocks().repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    total, terms = objective()(perfect(labels), frame_targets(labels))
    assert float(terms["classes"]) < 1e-6
    assert float(terms["box"]) == 0.0
    assert float(terms["giou"]) == pytest.approx(0.0, abs=1e-6)
    # Within half a pixel of a border the target is between 0 and 1 and the logit passes through zero.
    assert float(terms["dice"]) < 0.1
    assert float(total) < 1.0


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    total, terms = objective()(random_outputs(1), frame_targets(random_labels(1)))
    assert float(total) == pytest.approx(sum(getattr(ACDC_WEIGHTS, n) * float(v) for n, v in terms.items()), rel=1e-6)
    assert set(terms) == set(vars(ACDC_WEIGHTS))


def test_terms_equal_their_definitions_on_an_undecided_prediction() -> None:
    """A logit of zero costs log 2 at every point, whatever the target there."""
    labels = torch.ones(1, 1, SIDE, SIDE, dtype=torch.long)
    (target,) = frame_targets(labels)
    masks = torch.zeros(1, QUERIES, SIDE, SIDE)
    outputs = Outputs(torch.zeros(1, QUERIES, CLASSES + 1), masks, masks, torch.zeros(1, QUERIES, 4))
    terms = objective().terms(outputs, [target], [Match(torch.tensor([2]), torch.tensor([0]))])
    assert float(terms["mask"]) == pytest.approx(log(2), rel=1e-6)
    assert float(terms["aux_mask"]) == pytest.approx(log(2), rel=1e-6)
    assert float(terms["classes"]) == pytest.approx(log(CLASSES + 1), rel=1e-6)
    assert float(terms["box"]) == pytest.approx(2 * (SIDE - 1) / SIDE, rel=1e-6)
    assert float(terms["giou"]) == pytest.approx(
        1.0
    )  # a point in the corner of the box: no overlap, and the hull is the box


def test_unmatched_queries_count_a_tenth_in_the_class_term() -> None:
    logits = torch.randn(1, 3, CLASSES + 1, generator=torch.Generator().manual_seed(0))
    target = FrameTargets(torch.tensor([1]), torch.zeros(1, 2, 2), torch.zeros(1, 4))
    found = class_loss(logits, [target], [Match(torch.tensor([2]), torch.tensor([0]))])
    log = logits[0].log_softmax(dim=-1)
    expected = -(log[2, 1] + NO_OBJECT_WEIGHT * (log[0, CLASSES] + log[1, CLASSES])) / (1 + 2 * NO_OBJECT_WEIGHT)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_mask_terms_are_means_over_the_targets_of_the_batch() -> None:
    labels = random_labels(5, frames=1)
    outputs = random_outputs(5, frames=1)
    twice = Outputs(*(torch.cat([value, value]) for value in vars(outputs).values()))
    targets = frame_targets(labels)
    pairs = [Match(torch.arange(len(targets[0])), torch.arange(len(targets[0])))]
    one = objective().terms(outputs, targets, pairs)
    two = objective().terms(twice, targets * 2, pairs * 2)
    for name in ("classes", "box", "giou"):
        assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-5)


def test_a_batch_of_padding_alone_has_a_finite_loss_and_gradients() -> None:
    outputs = random_outputs(2)
    outputs.masks.requires_grad_()
    outputs.logits.requires_grad_()
    total, terms = objective()(outputs, frame_targets(torch.full((1, 2, SIDE, SIDE), -1)))
    total.backward()
    assert torch.isfinite(total)
    assert terms["mask"].item() == 0.0
    assert terms["classes"].item() > 0.0


def test_one_seed_gives_one_loss() -> None:
    first, _ = objective(7)(random_outputs(4), frame_targets(random_labels(4)))
    second, _ = objective(7)(random_outputs(4), frame_targets(random_labels(4)))
    other, _ = objective(8)(random_outputs(4), frame_targets(random_labels(4)))
    assert float(first) == float(second) != float(other)


def test_gradients_reach_every_output() -> None:
    outputs = random_outputs(6)
    for value in vars(outputs).values():
        value.requires_grad_()
    objective()(outputs, frame_targets(random_labels(6)))[0].backward()
    for name, value in vars(outputs).items():
        assert value.grad is not None, name
        assert float(value.grad.abs().sum()) > 0, name
