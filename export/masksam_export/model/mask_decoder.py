"""SAM's two-way mask decoder with depth adapters, run once for every query of every frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from masksam_export.config import ModelConfig
from masksam_export.model.blocks import ChannelLayerNorm, Mlp, ReluStack
from masksam_export.model.depth_adapter import DepthConvAdapter, DepthMlpAdapter

ADAPTER_SCALE = 0.5


class TokenAttention(nn.Module):
    """Multi-head attention with an inner width of its own."""

    def __init__(self, dim: int, inner: int, heads: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        self.heads = heads
        self.scale = (inner // heads) ** -0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [N, n, C]`, `k` and `v [N, m, C]` -> `[N, n, C]`."""
        query, key, value = (
            self._split(self.q_proj(q)),
            self._split(self.k_proj(k)),
            self._split(self.v_proj(v)),
        )
        weights = ((query @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2)
        return self.out_proj(mixed.reshape(-1, mixed.shape[1], self.out_proj.in_features))

    def _split(self, x: Tensor) -> Tensor:
        """`[N, n, inner]` -> `[N, heads, n, inner/heads]`."""
        return x.reshape(-1, x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves and to the image; the image attends back to the tokens."""

    def __init__(self, config: ModelConfig, *, first: bool) -> None:
        super().__init__()
        dim, heads = config.prompt_dim, config.decoder_heads
        self.config = config
        self.first = first
        self.self_attn = TokenAttention(dim, dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, dim // 2, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, config.decoder_mlp_dim, nn.ReLU())
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, dim // 2, heads)
        self.MLP_Queries_Adapter = token_adapter(config, skip=False)
        self.Space_Queries_Adapter = token_adapter(config, skip=True)
        self.Cross_Space_Adapter1 = token_adapter(config, skip=True)
        self.Cross_Space_Adapter2 = DepthConvAdapter(dim, config.decoder_adapter_dim, frames=config.frames, skip=True)

    def forward(self, q: Tensor, keys: Tensor, qpe: Tensor, kpe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `q`, `qpe [N, 8, C]`, image `keys [N, g*g, C]`, `kpe [T, 1, g*g, C]` -> new tokens and keys."""
        located = add_positions(keys, kpe, self.config)
        if self.first:  # officially without positions and without residual
            q = self.Space_Queries_Adapter(self.self_attn(q, q, q))
        else:
            q = q + self.Space_Queries_Adapter(self.self_attn(q + qpe, q + qpe, q))
        q = self.norm1(q)
        q = self.norm2(q + self.Cross_Space_Adapter1(self.cross_attn_token_to_image(q + qpe, located, keys)))
        q = self.norm3(q + self.mlp(q) + ADAPTER_SCALE * self.MLP_Queries_Adapter(q))
        update = self.cross_attn_image_to_token(located, q + qpe, q)
        update = self.Cross_Space_Adapter2.forward_prompts(update, self.config.queries, self.config.grid)
        return q, self.norm4(keys + update)


class TwoWayTransformer(nn.Module):
    """The layers and a last look of the tokens at the image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.prompt_dim
        self.config = config
        self.layers = nn.ModuleList(TwoWayLayer(config, first=index == 0) for index in range(config.decoder_depth))
        self.Space_Adapter = token_adapter(config, skip=True)
        self.final_attn_token_to_image = TokenAttention(dim, dim // 2, config.decoder_heads)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, keys: Tensor, kpe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image `keys [N, g*g, C]`, `kpe [T, 1, g*g, C]` and `tokens [N, 8, C]` -> new tokens and keys."""
        q = tokens
        for layer in self.layers:
            q, keys = layer(q, keys, tokens, kpe)
        located = add_positions(keys, kpe, self.config)
        q = q + self.Space_Adapter(self.final_attn_token_to_image(q + tokens, located, keys))
        return self.norm_final_attn(q), keys


def add_positions(keys: Tensor, kpe: Tensor, config: ModelConfig) -> Tensor:
    """Image positions `[T, 1, g*g, C]`, the same for all queries of a frame, onto `keys [B*T*Q, g*g, C]`."""
    by_frame = keys.reshape(-1, config.frames, config.queries, *keys.shape[1:])
    return (by_frame + kpe).reshape(-1, *keys.shape[1:])


def token_adapter(config: ModelConfig, *, skip: bool) -> DepthMlpAdapter:
    """A depth-MLP adapter for the decoder's tokens."""
    return DepthMlpAdapter(
        config.prompt_dim,
        config.decoder_adapter_dim,
        frames=config.frames,
        temporal_hidden=config.temporal_mlp_dim,
        queries=config.queries,
        skip=skip,
    )


@dataclass(frozen=True)
class Decoded:
    """Attributes: low_res_masks `[B*T*Q, 1, 4g, 4g]`, class_logits `[B*T, Q, K+1]`, tokens `[B*T*Q, 8, C]`."""

    low_res_masks: Tensor
    class_logits: Tensor
    tokens: Tensor


class MaskDecoder(nn.Module):
    """Turns prompts into one mask and one class distribution per query and frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.prompt_dim
        first, second = config.upscaling_widths
        self.config = config
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(config.mask_tokens, dim)
        self.classifier_token_Adapter = nn.Embedding(1, dim)
        self.classifier_embed_Adapter = nn.Linear(dim, config.classes + 1)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, first, 2, stride=2),
            ChannelLayerNorm(first),
            nn.GELU(),
            nn.ConvTranspose2d(first, second, 2, stride=2),
            nn.GELU(),
        )
        # Only the first hypernetwork is used; the others and the IoU head are loaded and left out of the graphs.
        self.output_hypernetworks_mlps = nn.ModuleList(
            ReluStack(dim, dim, dim, second) for _ in range(config.mask_tokens)
        )
        self.iou_prediction_head = ReluStack(dim, config.iou_hidden_dim, config.iou_hidden_dim, config.mask_tokens)

    def forward(self, embedding: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, classes: Tensor) -> Decoded:
        """Decode every prompt.

        Args:
            embedding: `[B*T, C, g, g]`.
            positions: of the image, `[T, 1, g*g, C]`.
            sparse: box corner tokens `[B*T*Q, 2, C]`.
            dense: embedded mask prompts `[B*T*Q, C, g, g]`.
            classes: class residuals `[B*T*Q, 1, C]`.
        """
        cfg, dim, cells = self.config, self.config.prompt_dim, self.config.grid**2
        tokens = self._tokens(sparse, classes)
        dense = dense.reshape(-1, cfg.queries, dim, cells) + embedding.reshape(-1, 1, dim, cells)
        keys = dense.reshape(-1, dim, cells).transpose(1, 2)
        q, keys = self.transformer(keys, positions, tokens)
        return Decoded(
            low_res_masks=self._masks(q, keys),
            class_logits=self.classifier_embed_Adapter(q[:, -1]).reshape(-1, cfg.queries, cfg.classes + 1),
            tokens=q,
        )

    def _tokens(self, sparse: Tensor, classes: Tensor) -> Tensor:
        """[IoU, mask tokens, two box corners, classifier] for every prompt."""
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        no_corners = torch.zeros(2, sparse.shape[-1]).to(sparse)
        learned = torch.cat([output_tokens, no_corners, self.classifier_token_Adapter.weight])
        # Padding, not expanding: the dynamic number of prompts then leaves no shape arithmetic in the graph.
        prompts = torch.cat([sparse, classes], dim=1)
        return learned + functional.pad(prompts, (0, 0, output_tokens.shape[0], 0))

    def _masks(self, q: Tensor, keys: Tensor) -> Tensor:
        """The first mask token's weights applied to the upscaled image."""
        grid, side = self.config.grid, self.config.mask_prompt_side
        upscaled = self.output_upscaling(keys.transpose(1, 2).reshape(-1, self.config.prompt_dim, grid, grid))
        weights = self.output_hypernetworks_mlps[0](q[:, 1:2])
        return (weights @ upscaled.reshape(-1, weights.shape[-1], side * side)).reshape(-1, 1, side, side)
