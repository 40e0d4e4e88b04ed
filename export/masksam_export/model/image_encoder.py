"""SAM's ViT image encoder with temporal embedding and depth adapters in every block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from masksam_export.config import PATCH_EMBED, ModelConfig
from masksam_export.model.blocks import ChannelLayerNorm, Mlp
from masksam_export.model.depth_adapter import DepthConvAdapter

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
    """Multi-head attention over an h x h square with decomposed relative positions.

    `table_side` is the square that the stored position tables were made for, `side` the one attended over; the
    tables are resampled where they differ. Of `rows` squares per window of the scan, so many heads are computed at
    a time that their logits stay within `LOGITS_LIMIT`: on a 1024 canvas all heads together would need 3 GiB, and
    every runtime holds several such tensors at once.
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

    def forward(self, x: Tensor) -> Tensor:
        """`[N, side, side, dim]` -> same shape."""
        side, heads, dim = self.side, self.heads, int(x.shape[-1])
        qkv = self.qkv(x).reshape(-1, side * side, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        q, k, v = (part.split(self.heads_at_once, dim=1) for part in qkv.unbind(0))
        mixed = torch.cat([self._attend(*heads_qkv) for heads_qkv in zip(q, k, v, strict=True)], dim=1)
        return self.proj(mixed.transpose(1, 2).reshape(-1, side, side, dim))

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
        self.window = 0 if index in config.global_blocks else config.window
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(
            dim,
            config.heads,
            side=self.window or config.grid,
            table_side=self.window or config.canvas_grid,
            rows=config.frames * (windows_per_side(config.grid, self.window) ** 2 if self.window else 1),
        )
        self.MLP_Adapter = DepthConvAdapter(dim, config.adapter_dim, frames=config.frames, skip=False)
        self.Space_Adapter = DepthConvAdapter(dim, config.adapter_dim, frames=config.frames, skip=True)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, config.mlp_dim, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """`[B*T, g, g, E]` -> same shape."""
        grid = int(x.shape[1])
        # Padding comes before the norm, unlike in SAM: padded tokens become the norm's bias and take part.
        y = split_windows(x, self.window) if self.window else x
        y = self.Space_Adapter(self.attn(self.norm1(y)))
        x = x + (merge_windows(y, grid) if self.window else y)
        z = self.norm2(x)
        return x + self.mlp(z) + ADAPTER_SCALE * self.MLP_Adapter(z)


def windows_per_side(grid: int, window: int) -> int:
    """How many windows cover one side of the grid, the last one padded."""
    return (grid + window - 1) // window


def split_windows(x: Tensor, window: int) -> Tensor:
    """`[N, g, g, E]` -> `[N*n*n, window, window, E]`, zero-padded at the bottom and right; rows (N, i, j)."""
    grid, dim = int(x.shape[1]), int(x.shape[3])
    count = windows_per_side(grid, window)
    padding = count * window - grid
    if padding:
        x = functional.pad(x, (0, 0, 0, padding, 0, padding))
    x = x.reshape(-1, count, window, count, window, dim).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window, window, dim)


def merge_windows(x: Tensor, grid: int) -> Tensor:
    """The inverse of `split_windows`, with the padding cut off."""
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
