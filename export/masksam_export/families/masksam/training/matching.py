"""Which query stands for which target: a Hungarian assignment per frame (DETR; MaskSAM's cost terms)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from masksam_export.families.masksam.training.points import PointSampling, sample, uniform_points
from masksam_export.families.masksam.training.targets import FrameTargets


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms, the same in the matching costs and in the losses; the defaults are those of AMOS."""

    classes: float = 0.2
    mask: float = 1.2
    dice: float = 1.2
    aux_mask: float = 0.5
    aux_dice: float = 0.5
    box: float = 0.5
    giou: float = 0.2


AMOS_WEIGHTS = TermWeights()
ACDC_WEIGHTS = TermWeights(mask=1.5, dice=1.5)
"""Also those of Synapse."""


@dataclass(frozen=True)
class Outputs:
    """What the losses look at.

    Attributes:
        logits: class logits `[N, Q, K+1]`, the last entry "no object"; N frames, rows (b t).
        masks: mask logits `[N, Q, P, P]`.
        aux_masks: auxiliary mask logits `[N, Q, P, P]`.
        aux_boxes: auxiliary boxes `[N, Q, 4]`, x1, y1, x2, y2 in [0, 1].
    """

    logits: Tensor
    masks: Tensor
    aux_masks: Tensor
    aux_boxes: Tensor


@dataclass(frozen=True)
class Match:
    """Paired indices of one frame: query `queries[i]` stands for target `targets[i]`, int64 `[n]` each."""

    queries: Tensor
    targets: Tensor


@torch.no_grad()
def match(
    outputs: Outputs,
    targets: list[FrameTargets],
    weights: TermWeights,
    sampling: PointSampling,
    generator: torch.Generator,
) -> list[Match]:
    """The cheapest assignment of targets to queries, frame by frame.

    Raises:
        ValueError: a frame has more targets than the network has queries.
    """
    return [
        _assign(frame_costs(outputs, index, frame, weights, sampling, generator)) for index, frame in enumerate(targets)
    ]


def frame_costs(
    outputs: Outputs,
    index: int,
    target: FrameTargets,
    weights: TermWeights,
    sampling: PointSampling,
    generator: torch.Generator,
) -> Tensor:
    """Costs `[Q, n]` of every query for every target of frame `index`; masks are compared on common points."""
    queries = outputs.logits.shape[1]
    points = uniform_points(1, sampling.count, generator, target.masks.device)
    wanted = sample(target.masks, points.expand(len(target), -1, -1))
    probability = outputs.logits[index].float().softmax(dim=-1)
    costs = -weights.classes * probability[:, target.labels]
    for logits, mask_weight, dice_weight in (
        (outputs.masks[index], weights.mask, weights.dice),
        (outputs.aux_masks[index], weights.aux_mask, weights.aux_dice),
    ):
        found = sample(logits, points.expand(queries, -1, -1))
        costs = costs + mask_weight * pairwise_bce(found, wanted) + dice_weight * pairwise_dice(found, wanted)
    boxes = outputs.aux_boxes[index].float()
    return costs + weights.box * torch.cdist(boxes, target.boxes, p=1) - weights.giou * giou(boxes, target.boxes)


def pairwise_bce(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean binary cross-entropy `[q, n]` of `logits [q, m]` against 0/1 `wanted [n, m]`, every pair."""
    count = logits.shape[1]
    # softplus(-x) is the cost of calling a set pixel clear, softplus(x) of calling a clear one set.
    return (functional.softplus(-logits) @ wanted.T + functional.softplus(logits) @ (1 - wanted).T) / count


def pairwise_dice(logits: Tensor, wanted: Tensor) -> Tensor:
    """Smoothed Dice loss `[q, n]` of `logits [q, m]` against 0/1 `wanted [n, m]`, every pair."""
    found = logits.sigmoid()
    return 1 - (2 * found @ wanted.T + 1) / (found.sum(1)[:, None] + wanted.sum(1)[None] + 1)


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union `[q, n]` of boxes `[q, 4]` and `[n, 4]` (Rezatofighi et al., 2019).

    Two boxes of no area at the same place have 0: neither fraction is defined there.
    """
    a, b = first[:, None], second[None]
    overlap = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    tiny = torch.finfo(hull.dtype).tiny
    return overlap / union.clamp_min(tiny) - (hull - union) / hull.clamp_min(tiny)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(0).prod(dim=-1)


def _assign(costs: Tensor) -> Match:
    queries, targets = costs.shape
    if targets > queries:
        raise ValueError(f"a frame holds {targets} classes but the network has {queries} queries; train with more")
    # A network that diverged gives NaN, which the assignment refuses; the loss is NaN then and the loop says so.
    rows, columns = linear_sum_assignment(costs.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy())
    return Match(torch.as_tensor(rows, device=costs.device), torch.as_tensor(columns, device=costs.device))
