"""Masks compared on sampled points instead of all pixels (PointRend; Mask2Former's training)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class PointSampling:
    """How many points, and how many of them where the prediction is unsure.

    Attributes:
        count: points per mask. Officially half of the patch's pixels.
        oversample: candidates drawn for each point that is chosen by uncertainty.
        importance: share of the points chosen by uncertainty; the rest is uniform.
    """

    count: int
    oversample: float = 2.0
    importance: float = 0.75


def uniform_points(rows: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`[rows, count, 2]` as (x, y) in [0, 1], drawn where the generator is."""
    return torch.rand(rows, count, 2, generator=generator, device=generator.device).to(device)


def sample(masks: Tensor, points: Tensor) -> Tensor:
    """Values of `masks [n, P, P]` at `points [n, m, 2]`, bilinear (align_corners false) -> `[n, m]`."""
    grid = 2.0 * points[:, None] - 1.0
    return functional.grid_sample(masks[:, None].float(), grid.float(), align_corners=False)[:, 0, 0]


def uncertain_points(logits: Tensor, sampling: PointSampling, generator: torch.Generator) -> Tensor:
    """Points `[n, count, 2]` for `logits [n, P, P]`: most where the logit is nearest to zero, the rest anywhere."""
    rows = len(logits)
    candidates = uniform_points(rows, int(sampling.count * sampling.oversample), generator, logits.device)
    chosen = int(sampling.count * sampling.importance)
    nearest = sample(logits.detach(), candidates).abs().topk(chosen, dim=1, largest=False).indices
    picked = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([picked, uniform_points(rows, sampling.count - chosen, generator, logits.device)], dim=1)
