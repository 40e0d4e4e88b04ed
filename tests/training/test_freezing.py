"""The official freezing rule: SAM's own weights stay, what MaskSAM adds is trained."""

from __future__ import annotations

import pytest
import torch

from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.official import ACDC, AMOS
from masksam_export.families.masksam.training.freezing import freeze_sam


def on_meta(config: ModelConfig) -> MaskSAM:
    with torch.device("meta"):
        return MaskSAM(config)


@pytest.mark.parametrize(("config", "millions"), [(ACDC, 21), (AMOS, 66)], ids=["vit_b", "vit_h"])
def test_as_many_weights_are_trained_as_the_authors_report(config: ModelConfig, millions: int) -> None:
    model = on_meta(config)
    trained, frozen = freeze_sam(model)
    assert round(trained / 1e6) == millions
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained + frozen == sum(p.numel() for p in model.parameters())


def test_inside_sam_only_adapters_and_temporal_embeddings_are_trained() -> None:
    model = on_meta(ACDC)
    freeze_sam(model)
    trained = {name for name, parameter in model.sam_model.named_parameters() if parameter.requires_grad}
    added = ("Space_Adapter", "MLP_Adapter", "Queries_Adapter", "Cross_Space_Adapter", "classifier_", "temporal_")
    assert trained == {n for n, _ in model.sam_model.named_parameters() if any(part in n for part in added)}
    assert "mask_decoder.classifier_embed_Adapter.bias" in trained
    assert "prompt_encoder.temporal_embedding" in trained
    assert "image_encoder.blocks.0.norm1.weight" not in trained


@pytest.mark.parametrize("config", [ACDC, AMOS], ids=["acdc", "amos"])
def test_everything_outside_sam_is_trained(config: ModelConfig) -> None:
    model = on_meta(config)
    freeze_sam(model)
    outside = [parameter for name, parameter in model.named_parameters() if not name.startswith("sam_model.")]
    assert outside
    assert all(parameter.requires_grad for parameter in outside)


def test_an_earlier_choice_is_forgotten() -> None:
    model, fresh = on_meta(ACDC).requires_grad_(False), on_meta(ACDC)
    assert freeze_sam(model) == freeze_sam(fresh)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in fresh.parameters()]
