"""Proposes the prompts: an auxiliary mask, a box and a class token for every query of every frame."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from masksam_export.families.masksam.config import GeneratorLevel, ModelConfig
from masksam_export.families.masksam.model.blocks import StackedConvBlocks, average_pool_plane, upsampling

MASK_THRESHOLD = 0.5  # strict, and on the sigmoid: in float32 that is not the same as a logit above zero


@dataclass(frozen=True)
class Proposals:
    """What the generator proposes for each frame and query.

    Attributes:
        mask_logits: auxiliary masks before the sigmoid, `[B*T, Q, P, P]`.
        masks: the same after the sigmoid.
        boxes: auxiliary boxes x1, y1, x2, y2 in [0, 1], `[B*T, Q, 4]`.
        class_tokens: what is added to the classifier token, `[B*T*Q, 1, C]`.
    """

    mask_logits: Tensor
    masks: Tensor
    boxes: Tensor
    class_tokens: Tensor


class PromptGenerator(nn.Module):
    """A U-shaped decoder over the encoder's taps, all frames together in 3D."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        levels, last = config.levels, config.levels[-1]
        pooled = sum(level.width for level in levels) + (2 * last.width if config.upsamples_input else 0)
        self.bbox_conv = StackedConvBlocks(
            1, (pooled, config.queries), (1, 1, 1), config, activation=nn.Sigmoid(), bias=False
        )
        self.residual_classifier = StackedConvBlocks(
            1, (pooled, config.queries), (3, 3, 3), config, activation=nn.GELU(), bias=True
        )
        stages = [StackedConvBlocks(levels[0].convs, (config.prompt_dim, levels[0].width), levels[0].kernel, config)]
        stages += [self._stage(level) for level in levels[1:]]
        self.image_decoder_stages = nn.ModuleList(stages)
        self.image_decoder_transpconvs = nn.ModuleList(
            upsampling(previous.width, level.width, bias=config.conv_bias)
            for previous, level in itertools.pairwise(levels)
        )
        self.image_decoder_seg_layers = nn.ModuleList([nn.Conv3d(last.width, config.queries, 1)])
        self.image_decoder_skips = nn.ModuleList(
            self._skip(level, doublings) for doublings, level in enumerate(levels[1:], start=1)
        )
        if config.upsamples_input:
            # Two more stages at full resolution; their skips are the last level's own modules, weights tied.
            self.image_decoder_stages_second = nn.ModuleList([self._stage(last)])
            self.image_decoder_stages_first = nn.ModuleList([self._stage(last)])
            self.image_decoder_skips_second = nn.ModuleList([self.image_decoder_skips[-1]])
            self.image_decoder_skips_first = nn.ModuleList([self.image_decoder_skips[-1]])

    def forward(self, taps: list[Tensor], embedding: Tensor) -> Proposals:
        """Taps `[B*T, E, g, g]` (four) and embedding `[B*T, C, g, g]` -> proposals."""
        outputs = self._levels([self._as_volume(tap) for tap in taps], self._as_volume(embedding))
        mask_logits = self._rows(self.image_decoder_seg_layers[0](outputs[-1]))
        masks = mask_logits.sigmoid()
        pool = self.config.class_pool
        pooled = [average_pool_plane(y, pool) for y in outputs]
        classes = self.residual_classifier(torch.cat(pooled, dim=1))
        boxes = self.bbox_conv(torch.cat([_pooled_further(y, p) for y, p in zip(outputs, pooled, strict=True)], dim=1))
        return Proposals(
            mask_logits=mask_logits,
            masks=masks,
            boxes=(relative_boxes(self._rows(boxes)) + boxes_from_masks(binarise(masks))) / 2,
            class_tokens=self._rows(classes).reshape(-1, 1, pool * pool),
        )

    def _levels(self, taps: list[Tensor], embedding: Tensor) -> list[Tensor]:
        """The outputs of all levels, coarse to fine."""
        outputs = [self.image_decoder_stages[0](embedding)]
        for stage, up, skip, tap in zip(
            self.image_decoder_stages[1:],
            self.image_decoder_transpconvs,
            self.image_decoder_skips,
            reversed(taps[4 - len(self.image_decoder_skips) :]),
            strict=True,
        ):
            outputs.append(stage(torch.cat([up(outputs[-1]), skip(tap)], dim=1)))
        if self.config.upsamples_input:
            for stages, skips, tap in (
                (self.image_decoder_stages_second, self.image_decoder_skips_second, taps[1]),
                (self.image_decoder_stages_first, self.image_decoder_skips_first, taps[0]),
            ):
                outputs.append(stages[0](torch.cat([outputs[-1], skips[0](tap)], dim=1)))
        return outputs

    def _stage(self, level: GeneratorLevel) -> StackedConvBlocks:
        return StackedConvBlocks(level.convs, (2 * level.width, level.width), level.kernel, self.config)

    def _skip(self, level: GeneratorLevel, doublings: int) -> nn.Sequential:
        """Brings a tap to a level's resolution: `doublings` pairs of upsampling and convolutions."""
        modules: list[nn.Module] = []
        for index in range(doublings):
            inputs = self.config.embed_dim if index == 0 else level.width
            modules.append(upsampling(inputs, level.width, bias=self.config.conv_bias))
            modules.append(StackedConvBlocks(level.convs, (level.width, level.width), level.kernel, self.config))
        return nn.Sequential(*modules)

    def _as_volume(self, rows: Tensor) -> Tensor:
        """`[B*T, c, h, w]` -> `[B, c, T, h, w]`."""
        return rows.reshape(-1, self.config.frames, *rows.shape[1:]).transpose(1, 2)

    def _rows(self, volume: Tensor) -> Tensor:
        """`[B, c, T, h, w]` -> `[B*T, c, h, w]`."""
        channels, _, height, width = volume.shape[1:]
        return volume.transpose(1, 2).reshape(-1, channels, height, width)


def _pooled_further(plane: Tensor, pooled: Tensor) -> Tensor:
    """`[B, C, T, H, W]` averaged to 2 x 2, from what is averaged already where that means the same."""
    size, side = int(plane.shape[-1]), int(pooled.shape[-1])
    nests = size % side == 0 and side % 2 == 0
    return average_pool_plane(pooled if nests else plane, 2)


def relative_boxes(p: Tensor) -> Tensor:
    """`[..., 2, 2]`, a corner and a relative extent, as (x, y) rows -> boxes `[..., 4]` in [0, 1]."""
    corner, extent = p[..., 0, :], p[..., 1, :]
    return torch.cat([corner, corner + (1 - corner) * extent], dim=-1)


def binarise(masks: Tensor) -> Tensor:
    """Auxiliary masks after the sigmoid -> 0.0 or 1.0, same shape and type."""
    return (masks > MASK_THRESHOLD).to(masks.dtype)


def boxes_from_masks(masks: Tensor) -> Tensor:
    """Bounding boxes `[..., 4]` (x1, y1, x2, y2 over the side, maxima inclusive) of 0/1 masks `[..., P, P]`.

    An empty mask has the box 0, 0, 0, 0. Only reductions, so that exported graphs have no data-dependent shapes.
    """
    x1, x2 = _extent(masks.amax(dim=-2))
    y1, y2 = _extent(masks.amax(dim=-1))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position set in 0/1 `[..., P]`, over P; 0, 0 where none is set."""
    side = occupied.shape[-1]
    position = torch.arange(side, dtype=occupied.dtype, device=occupied.device)
    last = (occupied * position).amax(dim=-1)
    to_end = (occupied * (side - position)).amax(dim=-1)  # 0 only if nothing is set
    first = (side - to_end) * (to_end > 0).to(to_end.dtype)
    return first / side, last / side
