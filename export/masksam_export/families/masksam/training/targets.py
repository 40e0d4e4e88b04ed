"""What a frame should be segmented into: one labelled mask and box for every class it holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masksam_export.families.masksam.model.prompt_generator import boxes_from_masks

PADDING = -1
"""Label of voxels that lie outside the scan; they belong to no class."""


@dataclass(frozen=True)
class FrameTargets:
    """The targets of one frame, in rising order of the class.

    Attributes:
        labels: class of each target, int64 `[n]`; the background is class 0 and a target like any other.
        masks: 0/1, float32 `[n, P, P]`.
        boxes: x1, y1, x2, y2 of the masks' set pixels over P, maxima inclusive, `[n, 4]`.
    """

    labels: Tensor
    masks: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def frame_targets(labels: Tensor) -> list[FrameTargets]:
    """Targets of every frame of a batch.

    Args:
        labels: class ids, integers `[B, T, P, P]`, `PADDING` outside the scan.

    Returns:
        One entry per frame, rows (b t) as in the network's outputs. A frame of padding alone has no targets.
    """
    return [_targets(frame) for frame in labels.flatten(0, 1)]


def _targets(frame: Tensor) -> FrameTargets:
    present = torch.unique(frame)
    present = present[present != PADDING]
    masks = (frame[None] == present[:, None, None]).float()
    return FrameTargets(present.long(), masks, boxes_from_masks(masks))
