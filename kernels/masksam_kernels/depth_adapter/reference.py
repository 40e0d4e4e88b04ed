"""The middle of a depth-convolution adapter in plain torch: slow, float64-capable, the truth that kernels are held to.

A MaskSAM adapter is Linear -> GELU -> depthwise Conv3d 3x3x3 -> layer norm over channels -> GELU -> add -> Linear
(MaskSAM, section 3.2; `DW` adapters of the released code). Everything between the two products is "the middle".

Layout of `hidden`: rows of channel-last images, `[outer * frames * inner, h, w, C]`. Depth neighbours are `inner` rows
apart: 1 in the encoder, whose rows are `(b t)` (in windowed blocks `(b t window)`, so depth runs over windows: that is
how the official weights were trained); the number of queries in the decoder, whose rows are `(b t q)`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def depth_adapter_middle(
    hidden: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    frames: int,
    inner: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """`a + GELU(LayerNorm(Conv3d(a)))` with `a = GELU(hidden + bias)`.

    Args:
        hidden: `[outer * frames * inner, h, w, C]`, what the first Linear multiplied out.
        bias: `[C]`, that Linear's bias. None: `hidden` is `a` already.
        taps: `[27, C]`, the depthwise weights; tap `9 * z + 3 * y + x`, each of 0, 1, 2.
        taps_bias: `[C]`, the convolution's bias.
        norm_weight: `[C]`.
        norm_bias: `[C]`.
        frames: length of the depth axis.
        inner: rows between depth neighbours.
        eps: of the layer norm.

    Returns:
        As `hidden`.
    """
    _, height, width, channels = hidden.shape
    active = hidden if bias is None else functional.gelu(hidden + bias)
    volumes = active.reshape(-1, frames, inner, height, width, channels).permute(0, 2, 5, 1, 3, 4)
    kernel = taps.reshape(3, 3, 3, channels).permute(3, 0, 1, 2)[:, None]
    mixed = functional.conv3d(volumes.flatten(0, 1), kernel, taps_bias, padding=1, groups=channels)
    rows = mixed.unflatten(0, (-1, inner)).permute(0, 3, 1, 4, 5, 2).reshape(hidden.shape)
    normed = functional.layer_norm(rows, (channels,), norm_weight, norm_bias, eps)
    return active + functional.gelu(normed)


def taps_from_conv(weight: Tensor) -> Tensor:
    """`[C, 1, 3, 3, 3]`, the state dict's depthwise weight, to `[27, C]`, the kernels' layout."""
    return torch.reshape(weight, (-1, 27)).t().contiguous()
