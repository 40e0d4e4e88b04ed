"""Formulations of attention with decomposed relative positions; all are the same function.

A formulation takes queries, keys and values `[N, heads, s*s, d]` and two position tables `[s, s, d]`, by row and by
column, and gives the mixed values `[N, heads, s*s, d]`. Queries come unscaled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.place import on_gpu

Formulation: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
ALIGNMENT = 8
"""Elements. Fused attention wants rows of biases and channels to be multiples of it."""


def position_terms(q: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column terms `[N, heads, s*s, s]` from unscaled queries, one batched product per axis."""
    side = len(rows)
    grid_q = q.reshape(q.shape[0], q.shape[1], side, side, q.shape[3])
    by_row = torch.einsum("nhijd,iud->nhiju", grid_q, rows)
    by_column = torch.einsum("nhijd,jud->nhiju", grid_q, columns)
    shape = (q.shape[0], q.shape[1], side * side, side)
    return by_row.reshape(shape), by_column.reshape(shape)


def explicit(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """All logits in memory."""
    by_row, by_column = position_terms(q, rows, columns)
    side = len(rows)
    logits = ((q * scale) @ k.transpose(-2, -1)).unflatten(-1, (side, side))
    logits = logits + by_row[..., :, None] + by_column[..., None, :]
    return logits.flatten(-2).softmax(dim=-1) @ v


def biased(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Fused attention that reads the summed terms from memory as a bias."""
    by_row, by_column = position_terms(q, rows, columns)
    tokens = int(q.shape[2])
    padding = -tokens % ALIGNMENT
    bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)
    if padding:
        bias = functional.pad(bias, (0, padding))[..., :tokens]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def augmented(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Plain flash attention: the terms are further channels of the queries, ones and zeros of the keys. It is exact."""
    by_row, by_column = position_terms(q, rows, columns)
    dim, side = int(q.shape[3]), len(rows)
    extra = _extra_width(side, dim)
    wide_q = torch.cat([q * scale, by_row, by_column, q.new_zeros(*q.shape[:3], extra - 2 * side)], dim=-1)
    wide_k = torch.cat([k, _selectors[side].to(k.dtype).expand(*k.shape[:2], -1, -1)], dim=-1)
    wide_v = functional.pad(v, (0, extra))  # flash attention takes one width for all three
    return functional.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)[..., :dim]


def flexible(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """FlexAttention: the terms are looked up while the logits are in registers."""
    by_row, by_column = position_terms(q, rows, columns)
    side = len(rows)

    def with_positions(score: Tensor, n: Tensor, h: Tensor, at: Tensor, of: Tensor) -> Tensor:
        return score + by_row[n, h, at, of // side] + by_column[n, h, at, of % side]

    return _flex["attention"](q, k, v, score_mod=with_positions, scale=scale)


FORMULATIONS: dict[str, Formulation] = {
    "explicit": explicit,
    "biased": biased,
    "augmented": augmented,
    "flexible": flexible,
}

_selectors: dict[int, Tensor] = {}
"""By side: `[s*s, width]`, ones at a token's row and, `side` channels further, at its column."""
_flex: dict[str, Any] = {}


def prepare(side: int, dim: int, like: Tensor) -> None:
    """Make what `augmented` and `flexible` need before they run: a CUDA graph can hold neither copies nor compilation.

    Args:
        side: of the squares of tokens that will be attended over.
        dim: channels of a head.
        like: a tensor of the type and on the device of the queries.
    """
    one = torch.eye(side, dtype=like.dtype, device=like.device)
    chosen = torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], 1)
    _selectors[side] = functional.pad(chosen, (0, _extra_width(side, dim) - 2 * side)).contiguous()
    if not _flex:
        from torch.nn.attention.flex_attention import flex_attention

        _flex["attention"] = torch.compile(flex_attention, dynamic=False) if on_gpu() else flex_attention


def _extra_width(side: int, dim: int) -> int:
    return 2 * side + (-(dim + 2 * side) % ALIGNMENT)
