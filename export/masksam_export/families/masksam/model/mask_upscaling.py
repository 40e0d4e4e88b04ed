"""From decoded image tokens to masks."""

from __future__ import annotations

from math import isqrt

from torch import Tensor, nn
from torch.nn import functional

from masksam_export.families.masksam.model.blocks import ChannelLayerNorm


class MaskUpscaling(nn.ModuleList):
    """SAM's fourfold upscaling and the product with a mask token's weights, channels last.

    A transposed convolution whose stride is its kernel's size is a Linear of each cell, to all channels of its 2 x 2
    pixels. So nothing is laid out anew until a pixel is a single number.
    """

    def __init__(self, dim: int, first: int, second: int) -> None:
        up, up_again = nn.ConvTranspose2d(dim, first, 2, stride=2), nn.ConvTranspose2d(first, second, 2, stride=2)
        super().__init__(
            [up, ChannelLayerNorm(first), nn.GELU(), up_again, nn.GELU()]
        )  # in SAM's order, with its names

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Image tokens `[N, g*g, C]` and a mask token's weights `[N, 1, c]` -> masks `[N, 1, 4g, 4g]`."""
        up, norm, _, up_again, _ = self
        assert isinstance(up, nn.ConvTranspose2d) and isinstance(up_again, nn.ConvTranspose2d)
        assert isinstance(norm, ChannelLayerNorm)
        pixels = functional.gelu(norm.channel_last(doubled(tokens, up)))
        pixels = functional.gelu(doubled(pixels, up_again))
        cells, grid = int(tokens.shape[1]), isqrt(int(tokens.shape[1]))
        masks = pixels.reshape(-1, 16 * cells, weights.shape[-1]) @ weights.transpose(1, 2)
        # Rows and columns of a cell, of its pixels, of their pixels.
        masks = masks.reshape(-1, grid, grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return masks.reshape(-1, 1, 4 * grid, 4 * grid)


def doubled(cells: Tensor, up: nn.ConvTranspose2d) -> Tensor:
    """Cells `[..., C]` -> their 2 x 2 pixels `[..., 4, c]`, row by row."""
    channels = up.out_channels
    weight = up.weight.permute(2, 3, 1, 0).reshape(4 * channels, up.in_channels)
    assert up.bias is not None  # for the type checker: SAM's have one
    pixels = functional.linear(cells, weight, up.bias.repeat(4))
    return pixels.reshape(*cells.shape[:-1], 4, channels)
