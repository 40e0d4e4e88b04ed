"""One frozen description of a MaskSAM network: every size that its weights imply, for all variants."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal, TypeAlias

Kernel: TypeAlias = tuple[int, int, int]
Variant: TypeAlias = Literal["acdc", "p512", "p256"]

PATCH_EMBED = 16  # pixels of the encoder image per token, in SAM and in every MaskSAM


@dataclass(frozen=True)
class GeneratorLevel:
    """One level of the prompt generator: output channels, convolutions per stack, kernel (depth, row, column)."""

    width: int
    convs: int
    kernel: Kernel


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of a MaskSAM network.

    `variant` names the official layouts. `acdc` upsamples its input by four before the encoder; `p512`
    (AMOS) and `p256` (Synapse) do not, have two more generator levels and a convolutional mask head, and
    differ from each other only in sizes.
    """

    variant: Variant
    in_channels: int
    frames: int
    """T: slices per window; the network accepts no other number."""
    queries: int
    """Q: masks proposed per frame."""
    classes: int
    """K: output classes, background included."""

    embed_dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    """Blocks that attend over the whole grid; the generator taps their outputs."""
    window: int
    mlp_dim: int
    adapter_dim: int
    canvas_grid: int
    """Tokens per side of the canvas that SAM was trained on (64 officially): position tables have this size."""
    grid: int
    """Tokens per side of this network's image, at most `canvas_grid`."""

    prompt_dim: int
    decoder_depth: int
    decoder_mlp_dim: int
    decoder_adapter_dim: int
    temporal_mlp_dim: int
    mask_tokens: int
    iou_hidden_dim: int
    mask_prompt_widths: tuple[int, int]
    upscaling_widths: tuple[int, int]

    stem_widths: tuple[int, ...]
    levels: tuple[GeneratorLevel, ...]
    """Levels 0, 1, ... in the order of `image_decoder_stages`."""
    head_width: int | None
    """Channels of the convolutional mask head; None for `acdc`, which only resamples."""
    conv_bias: bool
    norm_affine: bool

    decoder_heads: int = 8
    norm_eps: float = 1e-5
    leaky_slope: float = 0.01

    @property
    def upsamples_input(self) -> bool:
        """Whether the stem enlarges the image fourfold before the encoder."""
        return self.variant == "acdc"

    @property
    def patch_side(self) -> int:
        """P: rows and columns of a window of the scan."""
        return self.grid * (4 if self.upsamples_input else PATCH_EMBED)

    @property
    def canvas_side(self) -> int:
        """S: side of SAM's canvas in pixels, the divisor of box coordinates."""
        return self.canvas_grid * PATCH_EMBED

    @property
    def mask_prompt_side(self) -> int:
        """Rows and columns of the mask prompts and of the decoder's raw masks."""
        return 4 * self.grid

    @property
    def class_pool(self) -> int:
        """Side of the map that is pooled into one classifier token of `prompt_dim` values."""
        return isqrt(self.prompt_dim)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of one window, `[C, T, P, P]`."""
        return (self.in_channels, self.frames, self.patch_side, self.patch_side)
