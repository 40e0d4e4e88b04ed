"""SAM's prompt encoder: random Fourier positions for boxes, small convolutions for mask prompts."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn

from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model.blocks import ChannelLayerNorm


class PositionEmbedding(nn.Module):
    """Random Fourier features of points in the unit square."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, points: Tensor) -> Tensor:
        """`[..., 2]` as (x, y) in [0, 1] -> `[..., C]`."""
        phase = 2 * pi * ((2 * points - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


@dataclass(frozen=True)
class EmbeddedMasks:
    """Mask prompts but for the last Linear, which is left to those who go on with a Linear of their own.

    Attributes:
        features: `[N, g*g, c]`.
        weight: `[C, c]`.
        bias: `[C]`.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor


class PromptEncoder(nn.Module):
    """Boxes to sparse tokens, masks to dense maps, and the position map of the image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.prompt_dim
        first, second = config.mask_prompt_widths
        self.config = config
        self.pe_layer = PositionEmbedding(dim)
        # 0 and 1 (points), not_a_point and no_mask are SAM's; MaskSAM loads them and never uses them.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.no_mask_embed = nn.Embedding(1, dim)
        self.temporal_embedding = nn.Parameter(torch.zeros(config.frames, dim, config.grid, config.grid))
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, first, 2, stride=2),
            ChannelLayerNorm(first),
            nn.GELU(),
            nn.Conv2d(first, second, 2, stride=2),
            ChannelLayerNorm(second),
            nn.GELU(),
            nn.Conv2d(second, dim, 1),
        )

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes x1, y1, x2, y2 in canvas pixels `[N, 4]` -> corner tokens `[N, 2, C]`."""
        corners = (boxes.reshape(-1, 2, 2) + 0.5) / self.config.canvas_side
        kind = torch.cat([corner.weight for corner in self.point_embeddings[2:] if isinstance(corner, nn.Embedding)])
        return self.pe_layer(corners) + kind

    def embed_masks(self, masks: Tensor) -> EmbeddedMasks:
        """Binary masks `[N, 1, 4g, 4g]`, embedded up to the last Linear."""
        *narrow, widen = self.mask_downscaling
        assert isinstance(widen, nn.Conv2d) and widen.bias is not None
        for module in narrow:
            masks = module(masks)
        return EmbeddedMasks(masks.flatten(2).transpose(1, 2), widen.weight.flatten(1), widen.bias)

    def spatial_positions(self) -> Tensor:
        """Positions of the token centres on SAM's canvas, `[C, g, g]`."""
        centre = (torch.arange(self.config.grid, dtype=torch.float32) + 0.5) / self.config.canvas_grid
        centre = centre.to(self.temporal_embedding)
        rows, columns = torch.meshgrid(centre, centre, indexing="ij")
        return self.pe_layer(torch.stack([columns, rows], dim=-1)).permute(2, 0, 1)

    def image_positions(self) -> Tensor:
        """What the decoder adds to the image's keys: spatial plus temporal positions, `[T, 1, g*g, C]`."""
        positions = self.spatial_positions() + self.temporal_embedding
        return positions.flatten(2).transpose(1, 2)[:, None]
