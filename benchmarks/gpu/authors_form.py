"""The network as its authors' code computes it, from the project's modules and weights: the baseline of all ratios.

Nothing is rewritten here: windows are padded before the norm and every product is computed for the padding, all heads'
logits are in memory at once with relative positions by einsum from tables that are gathered anew, the adapter's norm is
channel-first in separate passes, the decoder's Linears run once per query, and masks are enlarged to SAM's canvas and
back (ACDC). The code is our own, written from the description of the architecture.
"""

from __future__ import annotations

import types
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu.project import (
    ADAPTER_SCALE,
    Attention,
    Block,
    Decoded,
    DecodedImage,
    DepthConvAdapter,
    EmbeddedMasks,
    MaskDecoder,
    MaskSAM,
    merge_windows,
    windows_per_side,
)


def make_authors_form(model: MaskSAM) -> MaskSAM:
    """The same module, its forward passes exchanged for the authors' form; results agree within rounding."""
    for module in model.modules():
        if isinstance(module, Block):
            _exchange(module, "forward", _block)
        elif isinstance(module, DepthConvAdapter):
            module.kind = "eager"
            _exchange(module, "forward", _adapter)
            _exchange(module, "middle", _middle)
        elif isinstance(module, MaskDecoder):
            _exchange(module, "forward", _decode)
    if model.config.head_width is None:
        _exchange(model, "full_size_masks", _masks_by_canvas)
    return model


def _exchange(module: nn.Module, method: str, function: types.FunctionType | object) -> None:
    setattr(module, method, types.MethodType(cast(types.FunctionType, function), module))


def _block(self: Block, x: Tensor) -> Tensor:
    grid, side = int(x.shape[1]), self.attn.side
    y = self.Space_Adapter(_attention(self.attn, self.norm1(_windows(x, side))))
    x = x + merge_windows(y, grid)
    z = self.norm2(x)
    return x + self.mlp(z) + ADAPTER_SCALE * self.MLP_Adapter(z)


def _windows(x: Tensor, side: int) -> Tensor:
    grid, dim = int(x.shape[1]), int(x.shape[3])
    count = windows_per_side(grid, side)
    padding = count * side - grid
    if padding:
        x = functional.pad(x, (0, 0, 0, padding, 0, padding))
    x = x.reshape(-1, count, side, count, side, dim).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, side, side, dim)


def _attention(attention: Attention, x: Tensor) -> Tensor:
    rows, side, _, dim = x.shape
    heads, tokens = attention.heads, side * side
    qkv = attention.qkv(x).reshape(rows, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, rows * heads, tokens, dim // heads).unbind(0)
    logits = (q * attention.scale) @ k.transpose(-2, -1)
    by_row, by_column = attention._positions()
    grid_q = q.reshape(rows * heads, side, side, dim // heads)
    row_terms = torch.einsum("nijd,iud->niju", grid_q, by_row)
    column_terms = torch.einsum("nijd,jud->niju", grid_q, by_column)
    logits = logits.reshape(-1, side, side, side, side) + row_terms[..., :, None] + column_terms[..., None, :]
    mixed = logits.reshape(rows * heads, tokens, tokens).softmax(dim=-1) @ v
    mixed = mixed.reshape(rows, heads, side, side, dim // heads).permute(0, 2, 3, 1, 4)
    return attention.proj(mixed.reshape(rows, side, side, dim))


def _adapter(self: DepthConvAdapter, x: Tensor) -> Tensor:
    y = self.D_fc2(_hidden(self, self.D_fc1(x), 1))
    return x + y if self.skip else y


def _middle(self: DepthConvAdapter, product: Tensor, bias: Tensor, inner: int = 1) -> Tensor:
    return _hidden(self, product + bias.to(product.dtype), inner)


def _hidden(self: DepthConvAdapter, hidden: Tensor, inner: int) -> Tensor:
    rows, height, width, channels = hidden.shape
    active = functional.gelu(hidden)
    volumes = active.reshape(-1, self.frames, inner, height, width, channels).permute(0, 2, 5, 1, 3, 4).flatten(0, 1)
    mixed = self.T_DWconv(volumes)
    mean = mixed.mean(1, keepdim=True)
    variance = (mixed - mean).pow(2).mean(1, keepdim=True)
    shape = (-1, 1, 1, 1)
    mixed = (mixed - mean) / torch.sqrt(variance + self.norm.eps)
    mixed = functional.gelu(self.norm.weight.reshape(shape) * mixed + self.norm.bias.reshape(shape))
    mixed = mixed.unflatten(0, (-1, inner)).permute(0, 3, 1, 4, 5, 2)
    return active + mixed.reshape(rows, height, width, channels)


def _decode(
    self: MaskDecoder, embedding: Tensor, positions: Tensor, sparse: Tensor, masks: EmbeddedMasks, classes: Tensor
) -> Decoded:
    cfg = self.config
    dense = functional.linear(masks.features, masks.weight, masks.bias)  # [B*T*Q, g*g, C]
    image = embedding.flatten(2).transpose(1, 2).repeat_interleave(cfg.queries, dim=0) + dense
    q, decoded = self.transformer(DecodedImage(image, cfg.queries), positions, self._tokens(sparse, classes))
    tokens, grid = decoded.tokens(), cfg.grid
    upscaled = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, grid, grid)
    up, norm, _, up_again, _ = self.output_upscaling
    upscaled = functional.gelu(up_again(functional.gelu(norm(up(upscaled)))))
    weights = torch.stack([mlp(q[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
    low = (weights @ upscaled.flatten(2))[:, :1].reshape(-1, 1, 4 * grid, 4 * grid)
    self.iou_prediction_head(q[:, 0])
    return Decoded(low, self.classifier_embed_Adapter(q[:, -1]).reshape(-1, cfg.queries, cfg.classes + 1), q)


def _masks_by_canvas(self: MaskSAM, low: Tensor) -> Tensor:
    cfg = self.config
    canvas = functional.interpolate(low, (cfg.canvas_side, cfg.canvas_side), mode="bilinear", align_corners=False)
    masks = functional.interpolate(canvas, (cfg.patch_side, cfg.patch_side), mode="bilinear", align_corners=False)
    return masks.reshape(-1, cfg.queries, cfg.patch_side, cfg.patch_side)
