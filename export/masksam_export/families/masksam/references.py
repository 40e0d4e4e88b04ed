"""What the network computes in PyTorch on every port of its graphs, and where rounding decides.

The network is discontinuous in two places: a mask pixel at exactly one half, a box edge at exactly a whole pixel. There
float32 rounding decides, in any implementation. Such ties are recognised by the network's own distance from the
threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masksam_export.families.base import Float, Mask, Reference
from masksam_export.families.masksam.graphs import TAPS, split_frames
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.prompt_generator import Proposals

TIE = 1e-4
"""Distance of a mask probability from one half, or of a box edge from a whole pixel (as a share of the side), within
which rounding decides: what the tolerance on a logit leaves after a sigmoid, and less."""


def reference_outputs(model: MaskSAM, image: Float) -> Reference:
    """Run the network in torch and keep what crosses between the graphs.

    Args:
        model: in evaluation mode.
        image: `[B, C, T, P, P]`.
    """
    config = model.config
    with torch.inference_mode():
        taps, embedding = model.encode(torch.from_numpy(image))
        proposals = model.prompt_generator(taps, embedding)
        masks, boxes = model.mask_prompts(proposals.masks), model.box_prompts(proposals.boxes)
        positions = model.sam_model.prompt_encoder.image_positions()
        logits, mask_logits = model.decode(embedding, masks, boxes, proposals.class_tokens, positions)
        scores = model.semantic_scores(logits, mask_logits)
        lead = (-1, config.frames, config.queries)
        features = zip((*TAPS, "embedding"), (*taps, embedding), strict=True)
        return Reference(
            ports={
                **{name: _numpy(split_frames(rows, config)) for name, rows in features},
                "mask_prompts": _numpy(masks.reshape(*lead, *masks.shape[-2:])),
                "box_prompts": _numpy(boxes.reshape(*lead, 4)),
                "class_tokens": _numpy(proposals.class_tokens.reshape(*lead, config.prompt_dim)),
                "image": image,
                "semseg": _numpy(scores),
            },
            may_differ=_ties(model, proposals),
            whole=frozenset(["mask_prompts", "box_prompts"]),
        )


def _ties(model: MaskSAM, proposals: Proposals) -> dict[str, Mask]:
    """Mask pixels next to one half, and box edges next to a whole pixel or of a mask with such a pixel."""
    config = model.config
    lead = (-1, config.frames, config.queries)
    side = config.mask_prompt_side
    step = config.patch_side // side
    distance = (proposals.masks - 0.5).abs()
    pixels = proposals.boxes * config.patch_side
    edges = (pixels - pixels.round()).abs().reshape(*lead, 4) / config.patch_side
    masks = distance.amin(dim=(-2, -1)).reshape(lead)
    return {
        "mask_prompts": (distance[..., ::step, ::step].reshape(*lead, side, side) <= TIE).numpy(),
        "box_prompts": ((edges <= TIE) | (masks <= TIE)[..., None]).numpy(),
    }


def _numpy(tensor: Tensor) -> Float:
    return tensor.contiguous().numpy()
