"""An oracle that is not ours: with its adapters silenced, MaskSAM's SAM parts are SAM."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter, DepthMlpAdapter
from masksam_export.families.masksam.official import ACDC, AMOS

TOLERANCE = 1e-5  # the same float32 operations, some in another order

CONFIG = replace(
    ACDC,
    frames=1,
    temporal_mlp_dim=4,
    embed_dim=32,
    depth=6,
    heads=2,
    global_blocks=(1, 2, 3, 5),
    window=5,
    mlp_dim=128,
    adapter_dim=8,
    canvas_grid=8,
    grid=8,
    prompt_dim=64,
    decoder_mlp_dim=48,
    decoder_adapter_dim=8,
    upscaling_widths=(16, 8),
    mask_prompt_widths=(2, 8),
    iou_hidden_dim=16,
    levels=tuple(replace(level, width=8) for level in ACDC.levels),
)


@pytest.fixture(scope="module")
def sam() -> ModuleType:
    """segment-anything's modelling modules alone: its package imports torchvision, which they do not need."""
    spec = importlib.util.find_spec("segment_anything")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = package
    return importlib.import_module("segment_anything.modeling")


def silenced(config: ModelConfig) -> MaskSAM:
    """A random network whose adapters add nothing and whose frames know no time."""
    torch.manual_seed(3)
    model = MaskSAM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name or "bias" not in name:
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
        if name.endswith("norm1.bias"):
            # SAM pads after the norm, MaskSAM before it: the same only where the norm's bias is zero.
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, DepthConvAdapter | DepthMlpAdapter):
            nn.init.zeros_(module.D_fc2.weight)
            nn.init.zeros_(module.D_fc2.bias)
    nn.init.zeros_(model.sam_model.image_encoder.temporal_embedding)
    nn.init.zeros_(model.sam_model.prompt_encoder.temporal_embedding)
    return model


def loaded(theirs: nn.Module, ours: nn.Module, **replaced: Tensor) -> Any:
    """Their module with our weights; tables that they size differently are put in as they are."""
    weights = {**ours.state_dict(), **replaced}
    for name, parameter in list(theirs.named_parameters()):
        if "rel_pos" in name:
            owner = theirs.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], nn.Parameter(weights[name]))
            continue
        parameter.data.copy_(weights[name])
    for name, buffer in theirs.named_buffers():
        buffer.copy_(weights[name])
    return theirs.eval()


@pytest.mark.parametrize("grid", [8, 7])
@torch.no_grad()
def test_image_encoder_agrees_with_segment_anything(sam: Any, grid: int) -> None:
    config = replace(AMOS, **{**vars(CONFIG), "variant": "p512", "grid": grid, "stem_widths": (8,), "head_width": 4})
    config = replace(config, levels=(CONFIG.levels[0], *(CONFIG.levels[1:] * 2)))
    ours = silenced(config).sam_model.image_encoder
    theirs = sam.ImageEncoderViT(
        img_size=16 * grid,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=4,
        out_chans=config.prompt_dim,
        qkv_bias=True,
        norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=config.global_blocks,
    )
    theirs = loaded(theirs, ours, pos_embed=ours.pos_embed[:, :grid, :grid])
    image = torch.randn(2, 3, 16 * grid, 16 * grid)
    _, embedding = ours(image)
    torch.testing.assert_close(embedding, theirs(image), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def prompts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    boxes = torch.randint(0, CONFIG.canvas_side, (CONFIG.queries, 4), generator=generator).float()
    masks = (torch.rand(CONFIG.queries, 1, 32, 32, generator=generator) > 0.5).float()
    return boxes, masks


def their_prompt_encoder(sam: Any, model: MaskSAM) -> Any:
    grid, side = CONFIG.grid, CONFIG.canvas_side
    theirs = sam.PromptEncoder(CONFIG.prompt_dim, (grid, grid), (side, side), CONFIG.mask_prompt_widths[1])
    return loaded(theirs, model.sam_model.prompt_encoder)


@torch.no_grad()
def test_prompt_encoder_agrees_with_segment_anything(sam: Any, prompts: tuple[Tensor, Tensor]) -> None:
    model = silenced(CONFIG)
    boxes, masks = prompts
    ours = model.sam_model.prompt_encoder
    sparse, dense = their_prompt_encoder(sam, model)(points=None, boxes=boxes, masks=masks)
    torch.testing.assert_close(ours.embed_boxes(boxes), sparse, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours.mask_downscaling(masks), dense, rtol=0, atol=TOLERANCE)
    their_positions = their_prompt_encoder(sam, model).get_dense_pe()
    torch.testing.assert_close(ours.spatial_positions()[None], their_positions, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_mask_decoder_agrees_with_segment_anything(sam: Any, prompts: tuple[Tensor, Tensor]) -> None:
    model = silenced(CONFIG)
    ours, encoder = model.sam_model.mask_decoder, model.sam_model.prompt_encoder
    transformer = sam.TwoWayTransformer(2, CONFIG.prompt_dim, CONFIG.decoder_heads, CONFIG.decoder_mlp_dim)
    theirs = sam.MaskDecoder(
        transformer_dim=CONFIG.prompt_dim, transformer=transformer, iou_head_hidden_dim=CONFIG.iou_hidden_dim
    )
    theirs = loaded(theirs, ours)
    boxes, masks = prompts
    embedding = torch.randn(1, CONFIG.prompt_dim, CONFIG.grid, CONFIG.grid)
    classes = torch.randn(CONFIG.queries, 1, CONFIG.prompt_dim)
    sparse, dense = encoder.embed_boxes(boxes), encoder.mask_downscaling(masks)
    decoded = ours(embedding, encoder.image_positions(), sparse, encoder.embed_masks(masks), classes)
    # To SAM, the classifier token is one more sparse prompt after the corners.
    class_tokens = ours.classifier_token_Adapter.weight + classes
    their_masks, _ = theirs.predict_masks(
        embedding, encoder.spatial_positions()[None], torch.cat([sparse, class_tokens], dim=1), dense
    )
    torch.testing.assert_close(decoded.low_res_masks, their_masks[:, :1], rtol=0, atol=TOLERANCE)
