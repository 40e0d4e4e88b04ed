"""Reads a network's configuration off its weights: every size from the tensor that has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from masksam_deploy.base.errors import CheckpointError
from masksam_export.families.masksam.config import GeneratorLevel, Kernel, ModelConfig, Variant

Shape = tuple[int, ...]

ENCODER = "sam_model.image_encoder"
PROMPTS = "sam_model.prompt_encoder"
DECODER = "sam_model.mask_decoder"
GENERATOR_TAPS = 4
MOST_REPEATS = 256  # blocks, layers, convolutions: far beyond any ViT, far below what would exhaust memory


@dataclass(frozen=True)
class _Weights:
    """Shapes by official name, with errors that name what is missing."""

    shapes: Mapping[str, Shape]

    def shape(self, name: str, rank: int) -> Shape:
        if name not in self.shapes:
            raise CheckpointError(
                f"the weights have no '{name}'; expected the state dict of a MaskSAM network (ACDC, AMOS or "
                "Synapse trainer): check that this is the checkpoint you meant"
            )
        shape = self.shapes[name]
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(f"'{name}' has shape {list(shape)}; expected {rank} axes, none of them empty")
        return shape

    def count(self, pattern: str) -> int:
        """How many n there are for which a name starts with pattern.format(n): 0, 1, 2, ... without gaps."""
        head, tail = pattern.split("{}")
        numbered = re.compile(re.escape(head) + r"(\d{1,4})" + re.escape(tail))
        found = {int(match[1]) for match in map(numbered.match, self.shapes) if match}
        if found != set(range(len(found))) or len(found) > MOST_REPEATS:
            raise CheckpointError(
                f"the weights number '{head}...' up to {max(found)} in {len(found)} parts; expected 0, 1, 2, ... "
                f"without gaps, at most {MOST_REPEATS}"
            )
        return len(found)

    def has(self, name: str) -> bool:
        return name in self.shapes


def config_from_shapes(
    shapes: Mapping[str, Shape], *, norm_eps: float = 1e-5, leaky_slope: float = 0.01
) -> ModelConfig:
    """The configuration that a state dict implies.

    Args:
        shapes: tensor shapes by official name.
        norm_eps: instance norm epsilon of the plan; leaves no trace in the weights.
        leaky_slope: negative slope of the plan's LeakyReLU; leaves no trace either.

    Raises:
        CheckpointError: a tensor that defines a size is missing or makes no sense.
    """
    weights = _Weights(shapes)
    embed_dim = weights.shape(f"{ENCODER}.pos_embed", 4)[3]
    canvas_grid = weights.shape(f"{ENCODER}.pos_embed", 4)[1]
    grid = weights.shape(f"{PROMPTS}.temporal_embedding", 4)[3]
    prompt_dim = weights.shape(f"{DECODER}.mask_tokens.weight", 2)[1]
    acdc = weights.has("first_conv.8.convs.0.conv.weight")
    depth = weights.count(f"{ENCODER}.blocks.{{}}.")
    head_dim = weights.shape(f"{ENCODER}.blocks.0.attn.rel_pos_h", 2)[1]
    global_blocks, window = _attention_layout(weights, depth, canvas_grid)
    config = ModelConfig(
        variant=variant_of(acdc, canvas_grid, grid),
        in_channels=weights.shape("first_conv.0.convs.0.conv.weight", 5)[1],
        frames=weights.shape(f"{ENCODER}.temporal_embedding", 3)[1],
        queries=weights.shape("image_decoder_seg_layers.0.weight", 5)[0],
        classes=weights.shape(f"{DECODER}.classifier_embed_Adapter.weight", 2)[0] - 1,
        embed_dim=embed_dim,
        depth=depth,
        heads=embed_dim // head_dim,
        global_blocks=global_blocks,
        window=window,
        mlp_dim=weights.shape(f"{ENCODER}.blocks.0.mlp.lin1.weight", 2)[0],
        adapter_dim=weights.shape(f"{ENCODER}.blocks.0.Space_Adapter.D_fc1.weight", 2)[0],
        canvas_grid=canvas_grid,
        grid=grid,
        prompt_dim=prompt_dim,
        decoder_depth=weights.count(f"{DECODER}.transformer.layers.{{}}."),
        decoder_mlp_dim=weights.shape(f"{DECODER}.transformer.layers.0.mlp.lin1.weight", 2)[0],
        decoder_adapter_dim=weights.shape(f"{DECODER}.transformer.Space_Adapter.D_fc1.weight", 2)[0],
        temporal_mlp_dim=weights.shape(f"{DECODER}.transformer.Space_Adapter.T_fc1.weight", 2)[0],
        mask_tokens=weights.shape(f"{DECODER}.mask_tokens.weight", 2)[0],
        iou_hidden_dim=weights.shape(f"{DECODER}.iou_prediction_head.layers.0.weight", 2)[0],
        mask_prompt_widths=_pair(weights, f"{PROMPTS}.mask_downscaling", axis=0),
        upscaling_widths=_pair(weights, f"{DECODER}.output_upscaling", axis=1),
        stem_widths=_stem_widths(weights, acdc),
        levels=_generator_levels(weights),
        head_width=None if acdc else weights.shape("final_conv.0.convs.0.conv.weight", 5)[0],
        conv_bias=weights.has("first_conv.0.convs.0.conv.bias"),
        norm_affine=weights.has("first_conv.0.convs.0.norm.weight"),
        norm_eps=norm_eps,
        leaky_slope=leaky_slope,
    )
    _check(config)
    return config


def _pair(weights: _Weights, layers: str, axis: int) -> tuple[int, int]:
    """Output widths of the two convolutions of a sequence whose first and fourth modules these are."""
    return weights.shape(f"{layers}.0.weight", 4)[axis], weights.shape(f"{layers}.3.weight", 4)[axis]


def variant_of(acdc: bool, canvas_grid: int, grid: int) -> Variant:
    """The layout's name; `p512` and `p256` differ only in the share of the canvas that the image covers."""
    if acdc:
        return "acdc"
    return "p256" if canvas_grid >= 4 * grid else "p512"


def _attention_layout(weights: _Weights, depth: int, canvas_grid: int) -> tuple[tuple[int, ...], int]:
    """Global blocks and window side, from the sizes of the relative position tables."""
    rows = [weights.shape(f"{ENCODER}.blocks.{i}.attn.rel_pos_h", 2)[0] for i in range(depth)]
    global_rows = 2 * canvas_grid - 1
    global_blocks = tuple(i for i, count in enumerate(rows) if count == global_rows)
    if len(global_blocks) == depth > GENERATOR_TAPS and depth % GENERATOR_TAPS == 0:
        # The window is as large as the canvas: tables cannot tell, SAM's rule (evenly spaced) can.
        step = depth // GENERATOR_TAPS
        return tuple(range(step - 1, depth, step)), canvas_grid
    if len(global_blocks) != GENERATOR_TAPS:
        raise CheckpointError(
            f"{len(global_blocks)} of {depth} encoder blocks have position tables of {global_rows} rows; "
            f"expected exactly {GENERATOR_TAPS} global blocks"
        )
    windowed = {count for count in rows if count != global_rows}
    if len(windowed) > 1:
        raise CheckpointError(
            f"windowed blocks have position tables of {', '.join(map(str, sorted(windowed)[:8]))} rows; expected one "
            "size"
        )
    return global_blocks, (windowed.pop() + 1) // 2 if windowed else canvas_grid


def _stem_widths(weights: _Weights, acdc: bool) -> tuple[int, ...]:
    first = weights.shape("first_conv.0.convs.0.conv.weight", 5)[0]
    return (first, weights.shape("first_conv.4.weight", 5)[1]) if acdc else (first,)


def _generator_levels(weights: _Weights) -> tuple[GeneratorLevel, ...]:
    levels = []
    for index in range(weights.count("image_decoder_stages.{}.")):
        prefix = f"image_decoder_stages.{index}.convs"
        width, _, *kernel = weights.shape(f"{prefix}.0.conv.weight", 5)
        levels.append(GeneratorLevel(width, weights.count(prefix + ".{}."), _kernel(kernel)))
    return tuple(levels)


def _kernel(sizes: list[int]) -> Kernel:
    depth, row, column = sizes
    return (depth, row, column)


def _check(config: ModelConfig) -> None:
    """Relations that shapes alone do not enforce."""
    expected_levels = 3 if config.upsamples_input else 5
    rules = [
        (len(config.levels) == expected_levels, f"{len(config.levels)} generator levels, not {expected_levels}"),
        (isqrt(config.prompt_dim) ** 2 == config.prompt_dim, f"prompt width {config.prompt_dim} is no square"),
        (
            config.prompt_dim % (2 * config.decoder_heads) == 0,
            f"prompt width {config.prompt_dim} is no multiple of {2 * config.decoder_heads}",
        ),
        (
            config.heads > 0 and config.embed_dim % config.heads == 0,
            f"embedding width {config.embed_dim} does not divide into {config.heads} heads",
        ),
        (config.grid <= config.canvas_grid, f"image grid {config.grid} exceeds canvas grid {config.canvas_grid}"),
        (config.classes > 0, f"{config.classes} classes"),
        (2 <= config.mask_tokens <= MOST_REPEATS, f"{config.mask_tokens} mask tokens"),
    ]
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise CheckpointError(f"the weights do not describe a MaskSAM: {'; '.join(broken)}")
