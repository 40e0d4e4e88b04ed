"""The three published MaskSAM networks, as configurations."""

from __future__ import annotations

from dataclasses import replace

from masksam_export.families.masksam.config import GeneratorLevel, Kernel, ModelConfig

FULL: Kernel = (3, 3, 3)
IN_PLANE: Kernel = (1, 3, 3)

ACDC = ModelConfig(
    variant="acdc",
    in_channels=1,
    frames=4,
    queries=8,
    classes=4,
    embed_dim=768,
    depth=12,
    heads=12,
    global_blocks=(2, 5, 8, 11),
    window=14,
    mlp_dim=3072,
    adapter_dim=192,
    canvas_grid=64,
    grid=64,
    prompt_dim=256,
    decoder_depth=2,
    decoder_mlp_dim=2048,
    decoder_adapter_dim=64,
    temporal_mlp_dim=16,
    mask_tokens=4,
    iou_hidden_dim=256,
    mask_prompt_widths=(4, 16),
    upscaling_widths=(64, 32),
    stem_widths=(16, 32),
    levels=(GeneratorLevel(256, 2, FULL), GeneratorLevel(128, 1, FULL), GeneratorLevel(128, 1, FULL)),
    head_width=None,
    conv_bias=True,
    norm_affine=True,
)
"""MaskSAM_ACDC: ViT-B on a 1024 canvas, 256x256 patches of 4 frames."""

AMOS = replace(
    ACDC,
    variant="p512",
    frames=9,
    queries=24,
    classes=16,
    embed_dim=1280,
    depth=32,
    heads=16,
    global_blocks=(7, 15, 23, 31),
    mlp_dim=5120,
    adapter_dim=320,
    grid=32,
    temporal_mlp_dim=36,
    stem_widths=(8,),
    levels=(
        GeneratorLevel(256, 2, FULL),
        GeneratorLevel(128, 1, FULL),
        GeneratorLevel(128, 1, FULL),
        GeneratorLevel(64, 1, FULL),
        GeneratorLevel(64, 1, IN_PLANE),
    ),
    head_width=64,
)
"""MaskSAM_AMOS: ViT-H, 512x512 patches of 9 frames."""

SYNAPSE = replace(AMOS, variant="p256", frames=26, classes=9, grid=16, temporal_mlp_dim=104)
"""MaskSAM_Synapse: ViT-H, 256x256 patches of 26 frames."""
