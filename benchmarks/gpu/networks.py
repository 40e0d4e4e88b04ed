"""The published networks with random weights, and tiny ones of the same layouts for dry runs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from benchmarks.gpu.place import device, dry
from benchmarks.gpu.project import MaskSAM, ModelConfig, new_network, official

FULL_SIZE = {"acdc": official.ACDC, "amos": official.AMOS, "synapse": official.SYNAPSE}


def _tiny(published: ModelConfig) -> ModelConfig:
    """The same layout with few and narrow layers: in Triton's interpreter a window of it takes a second."""
    return replace(
        published,
        frames=2,
        queries=3,
        classes=2,
        embed_dim=32,
        depth=5,
        heads=2,
        global_blocks=(1, 2, 3, 4),
        window=4,
        mlp_dim=96,
        adapter_dim=16,
        canvas_grid=8,
        grid=8 if published.upsamples_input else 6,
        prompt_dim=16,
        decoder_mlp_dim=32,
        decoder_adapter_dim=8,
        temporal_mlp_dim=8,
        iou_hidden_dim=16,
        upscaling_widths=(8, 4),
        levels=tuple(replace(level, width=max(4, level.width // 16)) for level in published.levels),
        head_width=None if published.head_width is None else 4,
    )


def config_of(name: str) -> ModelConfig:
    """A published network's sizes; those of a tiny one of the same layout in a dry run."""
    return _tiny(FULL_SIZE[name]) if dry() else FULL_SIZE[name]


def random_network(config: ModelConfig) -> MaskSAM:
    """A network in float32 on the device, the same at every call.

    Biases, norms and positions are away from zero and one: nothing could be left out unnoticed.
    """
    torch.manual_seed(0)
    with device():
        model = new_network(config, 0).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
        elif "rel_pos" in name:
            nn.init.normal_(parameter, std=0.1)
    return model
