"""SAM's two-way mask decoder with depth adapters, run once for every query of every frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model.blocks import Mlp, ReluStack
from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter, DepthMlpAdapter
from masksam_export.families.masksam.model.image_tokens import DecodedImage, ImageTokens, PromptedImage
from masksam_export.families.masksam.model.mask_upscaling import MaskUpscaling
from masksam_export.families.masksam.model.prompt_encoder import EmbeddedMasks

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
        return self.attend(self.q_proj(q), self.k_proj(k), self.v_proj(v))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What `q_proj`, `k_proj` and `v_proj` gave, `[N, n or m, inner]` -> `[N, n, C]`."""
        query, key, value = self._split(queries), self._split(keys), self._split(values)
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

    def forward(self, q: Tensor, image: ImageTokens, qpe: Tensor, positions: Tensor) -> tuple[Tensor, DecodedImage]:
        """Tokens `q`, `qpe [N, 8, C]`, an image and its `positions [T, 1, g*g, C]` -> new tokens and image."""
        located = image.located(positions)
        if self.first:  # officially without positions and without residual
            q = self.Space_Queries_Adapter(self.self_attn(q, q, q))
        else:
            q = q + self.Space_Queries_Adapter(self.self_attn(q + qpe, q + qpe, q))
        q = self.norm1(q)
        q = self.norm2(q + self.Cross_Space_Adapter1(look(self.cross_attn_token_to_image, q + qpe, located, image)))
        q = self.norm3(q + self.mlp(q) + ADAPTER_SCALE * self.MLP_Queries_Adapter(q))
        back = self.cross_attn_image_to_token
        update = back.attend(located.through(back.q_proj), back.k_proj(q + qpe), back.v_proj(q))
        update = self.Cross_Space_Adapter2.forward_prompts(update, self.config.queries, self.config.grid)
        return q, DecodedImage(self.norm4(image.tokens() + update), self.config.queries)


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

    def forward(self, image: ImageTokens, positions: Tensor, tokens: Tensor) -> tuple[Tensor, ImageTokens]:
        """An image, its `positions [T, 1, g*g, C]` and `tokens [N, 8, C]` -> new tokens and image."""
        q = tokens
        for layer in self.layers:
            q, image = layer(q, image, tokens, positions)
        looked = look(self.final_attn_token_to_image, q + tokens, image.located(positions), image)
        return self.norm_final_attn(q + self.Space_Adapter(looked)), image


def look(attention: TokenAttention, tokens: Tensor, located: ImageTokens, image: ImageTokens) -> Tensor:
    """Tokens `[N, n, C]` attend to an image: where it is decides, what it is comes back, `[N, n, C]`."""
    keys, values = located.through(attention.k_proj), image.through(attention.v_proj)
    return attention.attend(attention.q_proj(tokens), keys, values)


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
        self.output_upscaling = MaskUpscaling(dim, first, second)
        # Only the first hypernetwork is used; the others and the IoU head are loaded and left out of the graphs.
        self.output_hypernetworks_mlps = nn.ModuleList(
            ReluStack(dim, dim, dim, second) for _ in range(config.mask_tokens)
        )
        self.iou_prediction_head = ReluStack(dim, config.iou_hidden_dim, config.iou_hidden_dim, config.mask_tokens)

    def forward(
        self, embedding: Tensor, positions: Tensor, sparse: Tensor, masks: EmbeddedMasks, classes: Tensor
    ) -> Decoded:
        """Decode every prompt.

        Args:
            embedding: `[B*T, C, g, g]`.
            positions: of the image, `[T, 1, g*g, C]`.
            sparse: box corner tokens `[B*T*Q, 2, C]`.
            masks: embedded mask prompts of `B*T*Q` prompts.
            classes: class residuals `[B*T*Q, 1, C]`.
        """
        cfg = self.config
        image = PromptedImage(
            shared=embedding.flatten(2).transpose(1, 2)[:, None] + masks.bias,
            prompts=masks.features.reshape(-1, cfg.queries, *masks.features.shape[1:]),
            weight=masks.weight,
        )
        q, decoded = self.transformer(image, positions, self._tokens(sparse, classes))
        return Decoded(
            # The first mask token's weights applied to the upscaled image.
            low_res_masks=self.output_upscaling(decoded.tokens(), self.output_hypernetworks_mlps[0](q[:, 1:2])),
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
