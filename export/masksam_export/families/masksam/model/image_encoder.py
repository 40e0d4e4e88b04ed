"""SAM's ViT image encoder with temporal embedding and depth adapters in every block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from masksam_export.families.masksam.config import PATCH_EMBED, ModelConfig
from masksam_export.families.masksam.model.blocks import ChannelLayerNorm, Mlp
from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter

LAYER_NORM_EPS = 1e-6
ADAPTER_SCALE = 0.5
LOGITS_LIMIT = 2**28
"""Bytes of attention logits in float32 held at a time, for one window of the scan."""


class PatchEmbed(nn.Module):
    """Cuts the image into 16x16 pixel tokens."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, PATCH_EMBED, stride=PATCH_EMBED)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 16g, 16g]` -> `[N, g, g, E]`."""
        return self.proj(x).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head attention within squares of tokens, with decomposed relative positions.

    `table_side` is the square that the stored position tables were made for, `side` the one attended over; the
    tables are resampled where they differ. Of `rows` squares per window of the scan, so many heads are computed at
    a time that their logits stay within `LOGITS_LIMIT`: on a 1024 canvas all heads together would need 3 GiB, and
    every runtime holds several such tensors at once.

    Tokens come without the `shift` that the norm before adds to each of them, and padded ones are then zero. So they
    are added after the product with `qkv`, not before. The shift itself matters to queries only: what all keys have in
    common leaves a softmax as it is, and what all values have in common passes through and joins the bias of `proj`.
    """

    def __init__(self, dim: int, heads: int, *, side: int, table_side: int, rows: int) -> None:
        super().__init__()
        head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, head_dim))
        self.heads = heads
        self.side = side
        self.scale = head_dim**-0.5
        self.heads_at_once = _heads_at_once(heads, 4 * rows * side**4)
        self._frozen_positions: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Tokens `[N, g, g, dim]` -> squares `[N*n*n, side, side, dim]`, their heads mixed, before `projection`."""
        dim, groups = int(x.shape[3]), self.heads // self.heads_at_once
        parts = self._squares(functional.linear(x, self.qkv.weight)).split(self.heads_at_once, dim=1)
        queries, keys, values = parts[:groups], parts[groups : 2 * groups], parts[2 * groups :]
        shifts = functional.linear(shift, self.qkv.weight[:dim], self.qkv.bias[:dim])
        shifts = shifts.reshape(groups, self.heads_at_once, 1, -1)
        mixed = [self._attend(q + s, k, v) for q, s, k, v in zip(queries, shifts, keys, values, strict=True)]
        return torch.cat(mixed, dim=1).transpose(1, 2).reshape(-1, self.side, self.side, dim)

    def projection(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the Linear that the mixed heads go through."""
        values = slice(2 * len(shift), None)
        common = functional.linear(shift, self.qkv.weight[values], self.qkv.bias[values])
        return self.proj.weight, functional.linear(common, self.proj.weight, self.proj.bias)

    def _squares(self, product: Tensor) -> Tensor:
        """`[N, g, g, 3*dim]` -> `[N*n*n, 3*heads, side*side, d]`, padded with zeros at the bottom and right."""
        side, heads = self.side, 3 * self.heads
        grid, count = int(product.shape[1]), windows_per_side(int(product.shape[1]), side)
        padding = count * side - grid
        if padding:
            product = functional.pad(product, (0, 0, 0, padding, 0, padding))
        product = product.reshape(-1, count, side, count, side, heads, int(product.shape[3]) // heads)
        product = product.permute(0, 1, 3, 5, 2, 4, 6)  # one copy makes windows and heads
        return product.reshape(-1, heads, side * side, int(product.shape[-1]))

    def freeze_positions(self) -> None:
        """Compute the position tables once: they do not depend on the input. Used before export."""
        with torch.no_grad():
            self._frozen_positions = self._positions()

    def thaw_positions(self) -> None:
        """Compute the tables from the parameters again."""
        self._frozen_positions = None

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Some heads' `[N, heads, side*side, d]` -> the same shape, mixed."""
        side, heads, head_dim = self.side, int(q.shape[1]), int(q.shape[3])
        logits = (q * self.scale) @ k.transpose(-2, -1)
        logits = logits.reshape(-1, heads, side, side, side, side)
        rows, columns = self._position_logits(q.reshape(-1, heads, side, side, head_dim))
        logits = logits + rows[..., :, None] + columns[..., None, :]
        return logits.reshape(-1, heads, side * side, side * side).softmax(dim=-1) @ v

    def _position_logits(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Unscaled `q [N, heads, i, j, d]` -> row terms `[N, heads, i, j, i']` and column terms `[..., j']`."""
        rows, columns = self._frozen_positions or self._positions()
        row_logits = q @ rows.transpose(-2, -1)
        column_logits = (q.transpose(2, 3) @ columns.transpose(-2, -1)).transpose(2, 3)
        return row_logits, column_logits

    def _positions(self) -> tuple[Tensor, Tensor]:
        return self._gather(self.rel_pos_h), self._gather(self.rel_pos_w)

    def _gather(self, table: Tensor) -> Tensor:
        """`[rows, d]` -> `[i, i', d]`, the entry for the distance i - i'."""
        needed = 2 * self.side - 1
        if table.shape[0] != needed:
            resampled = functional.interpolate(table.T[None], size=needed, mode="linear", align_corners=False)
            table = resampled[0].T
        index = torch.arange(self.side)
        return table[index[:, None] - index[None, :] + self.side - 1]


def _heads_at_once(heads: int, bytes_per_head: int) -> int:
    """The largest divisor of `heads` whose logits fit, at least 1."""
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and n * bytes_per_head <= LOGITS_LIMIT]
    return max(fitting, default=1)


class Block(nn.Module):
    """A transformer block with two depth adapters; windowed unless the block is global."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        windowed = index not in config.global_blocks
        side = config.window if windowed else config.grid
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(
            dim,
            config.heads,
            side=side,
            table_side=side if windowed else config.canvas_grid,
            rows=config.frames * windows_per_side(config.grid, side) ** 2,
        )
        self.MLP_Adapter = DepthConvAdapter(dim, config.adapter_dim, frames=config.frames, skip=False)
        self.Space_Adapter = DepthConvAdapter(dim, config.adapter_dim, frames=config.frames, skip=True)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, config.mlp_dim, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """`[B*T, g, g, E]` -> same shape."""
        x = x + self._attend(x)
        z = self.norm2(x)
        return x + self.mlp(z) + ADAPTER_SCALE * self.MLP_Adapter(z)

    def _attend(self, x: Tensor) -> Tensor:
        """`Space_Adapter(attn(norm1(x)))` of windows that were padded before the norm, unlike in SAM.

        Only the tokens of the grid are wanted. Padded ones matter as keys and values, and as neighbours in the
        adapter, which takes them through `attn.proj` and `D_fc1` at once; no other product is computed for them.
        """
        grid, norm, adapter = int(x.shape[1]), self.norm1, self.Space_Adapter
        mixed = self.attn(functional.layer_norm(x, norm.normalized_shape, norm.weight, None, norm.eps), norm.bias)
        weight, bias = self.attn.projection(norm.bias)
        fc1 = adapter.D_fc1
        product = functional.linear(mixed, fc1.weight @ weight)
        hidden = adapter.middle(product, functional.linear(bias, fc1.weight, fc1.bias))
        y = functional.linear(merge_windows(mixed, grid), weight, bias)
        return y + adapter.D_fc2(merge_windows(hidden, grid))


def windows_per_side(grid: int, window: int) -> int:
    """How many windows cover one side of the grid, the last one padded."""
    return (grid + window - 1) // window


def merge_windows(x: Tensor, grid: int) -> Tensor:
    """Windows `[N*n*n, w, w, E]`, rows (N, i, j), to the grid they were cut from, `[N, g, g, E]`."""
    window, dim = int(x.shape[1]), int(x.shape[3])
    count = windows_per_side(grid, window)
    x = x.reshape(-1, count, count, window, window, dim).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, count * window, count * window, dim)[:, :grid, :grid]


class ImageEncoder(nn.Module):
    """ViT over all frames of a window, with taps after the global blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, prompt_dim = config.embed_dim, config.prompt_dim
        self.config = config
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.canvas_grid, config.canvas_grid, dim))
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.frames, dim))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(dim, prompt_dim, 1, bias=False),
            ChannelLayerNorm(prompt_dim),
            nn.Conv2d(prompt_dim, prompt_dim, 3, padding=1, bias=False),
            ChannelLayerNorm(prompt_dim),
        )

    def forward(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encode every frame.

        Args:
            frames: `[B*T, 3, 16g, 16g]`, rows (b t).

        Returns:
            Taps `[B*T, E, g, g]` after each global block, and the embedding `[B*T, C, g, g]`.
        """
        grid, count = self.config.grid, self.config.frames
        x = self.patch_embed(frames) + self.pos_embed[:, :grid, :grid]
        x = x.reshape(-1, count, grid, grid, x.shape[-1]) + self.temporal_embedding[:, :, None, None]
        x = x.reshape(-1, grid, grid, x.shape[-1])
        taps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.config.global_blocks:
                taps.append(x.permute(0, 3, 1, 2))
        return taps, self.neck(x.permute(0, 3, 1, 2))
