"""MaskSAM's training objective on matched pairs of query and target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from masksam_export.families.masksam.training.matching import Match, Outputs, TermWeights, giou, match
from masksam_export.families.masksam.training.points import PointSampling, sample, uncertain_points
from masksam_export.families.masksam.training.targets import FrameTargets

NO_OBJECT_WEIGHT = 0.1
"""Of queries without a target, in the class cross-entropy."""


class Objective:
    """Matches, then adds up the terms; see `terms` for each.

    One difference from the released code, on purpose: it applies a sigmoid to auxiliary masks that already had
    one. Here the auxiliary terms see logits, which conditions training from scratch better.

    Args:
        weights: of the terms.
        sampling: how masks are compared.
        generator: of the sampled points; give it a seed for a reproducible run.
    """

    def __init__(self, weights: TermWeights, sampling: PointSampling, generator: torch.Generator) -> None:
        self.weights = weights
        self.sampling = sampling
        self.generator = generator

    def __call__(self, outputs: Outputs, targets: list[FrameTargets]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the unweighted terms by name."""
        matches = match(outputs, targets, self.weights, self.sampling, self.generator)
        terms = self.terms(outputs, targets, matches)
        total = torch.stack([getattr(self.weights, name) * value for name, value in terms.items()]).sum()
        return total, terms

    def terms(self, outputs: Outputs, targets: list[FrameTargets], matches: list[Match]) -> dict[str, Tensor]:
        """Every term by the name of its weight. Mask and box terms are means over the targets of the batch."""
        count = max(sum(len(frame) for frame in targets), 1)
        pairs = _pairs(matches, outputs.masks.device)
        wanted_masks = torch.cat([t.masks[m.targets] for t, m in zip(targets, matches, strict=True)])
        wanted_boxes = torch.cat([t.boxes[m.targets] for t, m in zip(targets, matches, strict=True)])
        mask, dice = self._mask_terms(outputs.masks[pairs], wanted_masks, count)
        aux_mask, aux_dice = self._mask_terms(outputs.aux_masks[pairs], wanted_masks, count)
        boxes = outputs.aux_boxes[pairs].float()
        return {
            "classes": class_loss(outputs.logits, targets, matches),
            "mask": mask,
            "dice": dice,
            "aux_mask": aux_mask,
            "aux_dice": aux_dice,
            "box": functional.l1_loss(boxes, wanted_boxes, reduction="sum") / count,
            "giou": (1 - giou(boxes, wanted_boxes).diagonal()).sum() / count,
        }

    def _mask_terms(self, logits: Tensor, wanted: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and Dice loss of paired `[n, P, P]`, on points where the prediction is unsure."""
        points = uncertain_points(logits, self.sampling, self.generator)
        found, truth = sample(logits, points), sample(wanted, points)
        bce = functional.binary_cross_entropy_with_logits(found, truth, reduction="none").mean(dim=1).sum() / count
        probability = found.sigmoid()
        overlap = 2 * (probability * truth).sum(dim=1) + 1
        dice = (1 - overlap / (probability.sum(dim=1) + truth.sum(dim=1) + 1)).sum() / count
        return bce, dice


def class_loss(logits: Tensor, targets: Sequence[FrameTargets], matches: Sequence[Match]) -> Tensor:
    """Cross-entropy of `logits [N, Q, K+1]`; unmatched queries should say "no object" but weigh less."""
    no_object = logits.shape[2] - 1
    wanted = torch.full(logits.shape[:2], no_object, dtype=torch.long, device=logits.device)
    for row, (target, pairs) in enumerate(zip(targets, matches, strict=True)):
        wanted[row, pairs.queries] = target.labels[pairs.targets]
    weights = torch.ones(no_object + 1, device=logits.device)
    weights[no_object] = NO_OBJECT_WEIGHT
    return functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), weights)


def _pairs(matches: Sequence[Match], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices (frame, query) of all matched queries."""
    frames = [torch.full_like(pairs.queries, row) for row, pairs in enumerate(matches)]
    empty = torch.zeros(0, dtype=torch.long, device=device)
    return torch.cat([empty, *frames]), torch.cat([empty, *(pairs.queries for pairs in matches)])
