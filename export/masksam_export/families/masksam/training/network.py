"""Networks to train: the published ones and a small one, fitted to a patch; and how their weights begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from masksam_deploy.base.errors import DatasetError
from masksam_export.families.masksam import official
from masksam_export.families.masksam.config import GeneratorLevel, ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.weights import variant_of

NetworkName: TypeAlias = Literal["tiny", "acdc", "synapse", "amos"]
NETWORK_NAMES: tuple[NetworkName, ...] = get_args(NetworkName)

TEMPORAL_GROWTH = 4  # officially, the adapters' MLPs along the frames are four times as wide as there are frames

TINY = replace(
    official.ACDC,
    embed_dim=128,
    depth=6,
    heads=4,
    global_blocks=(1, 3, 4, 5),
    window=8,
    mlp_dim=384,
    adapter_dim=32,
    canvas_grid=16,
    grid=16,
    prompt_dim=64,
    decoder_mlp_dim=256,
    decoder_adapter_dim=16,
    iou_hidden_dim=64,
    upscaling_widths=(16, 8),
    stem_widths=(4, 4),
    levels=(
        GeneratorLevel(64, 1, official.FULL),
        GeneratorLevel(32, 1, official.FULL),
        GeneratorLevel(16, 1, official.IN_PLANE),
    ),
)
"""The ACDC layout with under two million weights: trains from scratch on two CPU cores.

That layout because its tokens cover 4 x 4 pixels of the scan, where those of the others cover 16 x 16: with little data
a small network then finds a structure, but not its border.
"""

_TEMPLATES: dict[NetworkName, ModelConfig] = {
    "tiny": TINY,
    "acdc": official.ACDC,
    "synapse": official.SYNAPSE,
    "amos": official.AMOS,
}
INIT_STD = 0.02


def side_multiple(name: NetworkName) -> int:
    """What the patch's rows and columns must be a multiple of."""
    template = _TEMPLATES[name]
    return template.patch_side // template.grid


def largest_side(name: NetworkName) -> int:
    """The largest patch side that the network's position tables cover; none is set for `tiny`."""
    return 1024 if name == "tiny" else side_multiple(name) * _TEMPLATES[name].canvas_grid


def default_queries(name: NetworkName, classes: int) -> int:
    """The published number, or one and a half per class where that is more; at least two more than classes."""
    published = 0 if name == "tiny" else _TEMPLATES[name].queries
    return max(published, classes * 3 // 2, classes + 2)


def default_epochs(name: NetworkName) -> int:
    """The published number."""
    return 500 if name == "acdc" else 1000


def network_config(
    name: NetworkName, *, channels: int, patch: tuple[int, int, int], queries: int, classes: int
) -> ModelConfig:
    """The named network for a patch (T, P, P).

    Raises:
        DatasetError: the patch does not fit the network, or there are fewer queries than classes.
    """
    template, multiple = _TEMPLATES[name], side_multiple(name)
    frames, height, width = patch
    # Two tokens a side at least: with one, windowed and global attention are the same.
    if height != width or height % multiple or not 2 * multiple <= height <= largest_side(name) or frames < 1:
        raise DatasetError(
            f"patch {frames}x{height}x{width} does not fit network '{name}'; expected T x P x P with P a multiple of "
            f"{multiple} from {2 * multiple} to {largest_side(name)}"
        )
    if queries < classes:
        raise DatasetError(f"{queries} queries cannot stand for {classes} classes; expected at least as many")
    grid = height // multiple
    canvas = grid if name == "tiny" else template.canvas_grid
    return replace(
        template,
        variant=variant_of(template.upsamples_input, canvas, grid),
        in_channels=channels,
        frames=frames,
        queries=queries,
        classes=classes,
        canvas_grid=canvas,
        grid=grid,
        window=min(template.window, grid // 2) if name == "tiny" else template.window,
        temporal_mlp_dim=TEMPORAL_GROWTH * frames,
    )


def new_network(config: ModelConfig, seed: int) -> MaskSAM:
    """A network with fresh weights: ViT and decoder as in SAM's own training code, convolutions after He.

    The last layer of every adapter starts small, so that a block begins close to a plain transformer block.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskSAM(config)
        model.apply(_initialise)
        for name, parameter in model.named_parameters():
            if name.endswith(("pos_embed", "temporal_embedding", "rel_pos_h", "rel_pos_w")):
                nn.init.trunc_normal_(parameter, std=INIT_STD)
    return model


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Conv2d | nn.ConvTranspose2d):
        # As nnU-Net does for its convolutions; the slope is that of its LeakyReLU.
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def weight_count(model: nn.Module, *, trained: bool = False) -> int:
    """How many weights a network has, ties counted once; with `trained`, those that a step changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)
