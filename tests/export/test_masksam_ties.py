"""Where a MaskSAM's prompts may differ from the network's, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs the 'export' extra")

import torch

from masksam_export.families.masksam.model.prompt_generator import Proposals
from masksam_export.families.masksam.references import TIE, _ties, reference_outputs
from tests.export.golden import Golden

MODEL = Golden.read("tiny_acdc").model()


def proposals() -> Proposals:
    """Masks far from one half, and box edges far from whole pixels."""
    config = MODEL.config
    rows = (config.frames, config.queries)
    masks = torch.full((*rows, config.patch_side, config.patch_side), 0.9)
    return Proposals(
        mask_logits=masks.logit(),
        masks=masks,
        boxes=torch.full((*rows, 4), 10.5 / config.patch_side),
        class_tokens=torch.zeros(*rows, config.prompt_dim),
    )


def test_no_prompt_may_differ_where_nothing_is_near_a_threshold() -> None:
    assert not any(mask.any() for mask in _ties(MODEL, proposals()).values())


def test_a_mask_pixel_next_to_one_half_may_differ_and_so_may_the_box_around_its_mask() -> None:
    masks = proposals().masks
    masks[0, 1, 0, 0] = 0.5 + TIE / 2
    found = _ties(MODEL, replace(proposals(), masks=masks))
    assert found["mask_prompts"].sum() == 1 and found["mask_prompts"][0, 0, 1, 0, 0]
    assert found["box_prompts"].sum() == 4 and found["box_prompts"][0, 0, 1].all()


def test_a_box_edge_next_to_a_whole_pixel_may_differ_alone() -> None:
    boxes = proposals().boxes
    boxes[0, 1, 2] = (7 - TIE / 2) / MODEL.config.patch_side
    found = _ties(MODEL, replace(proposals(), boxes=boxes))
    assert not found["mask_prompts"].any()
    assert found["box_prompts"].sum() == 1 and found["box_prompts"][0, 0, 1, 2]


def test_the_reference_of_a_network_has_every_port_and_masks_of_their_shapes() -> None:
    config = MODEL.config
    found = reference_outputs(MODEL, torch.randn(2, *config.input_shape).numpy())
    assert found.whole == {"mask_prompts", "box_prompts"} == set(found.may_differ)
    assert all(mask.shape == found.ports[name].shape for name, mask in found.may_differ.items())
    assert found.ports["semseg"].shape == (2, config.classes, *config.input_shape[1:])
