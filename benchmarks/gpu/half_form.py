"""The same weights in half precision, as a GPU would run them: what the project could ship as its path in PyTorch.

Attention is exchangeable (`attention_forms`). Everything that depends on weights alone is computed once, so that one
CUDA graph can hold a whole window: nothing is copied from the host while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu.attention_forms import FORMULATIONS, prepare
from benchmarks.gpu.project import (
    ADAPTER_SCALE,
    Attention,
    Block,
    DepthConvAdapter,
    MaskSAM,
    linear_matrix,
    merge_windows,
    taps_from_conv,
)

Adapters: TypeAlias = Literal["eager", "fused", "early GELU"]


@dataclass(frozen=True)
class Choice:
    """Which formulation of attention runs in windowed blocks and which in global ones."""

    windowed: str
    overall: str


class HalfNetwork:
    """A window `[1, C, T, P, P]` to class scores.

    Args:
        model: a network in float32, which is used up.
        dtype: of the weights and of everything that is computed from them.
        choice: the formulations of attention.
        adapters: plain PyTorch, the project's fused kernel, or a pass of GELU before the kernel of `early_gelu`.
        channels_last: whether the 3D convolutions' weights are laid out channels last.
    """

    def __init__(
        self,
        model: MaskSAM,
        dtype: torch.dtype,
        choice: Choice,
        *,
        adapters: Adapters,
        channels_last: bool = False,
    ) -> None:
        self.model, self.dtype = model, dtype
        encoder = model.sam_model.prompt_encoder
        # Fourier features and pixel coordinates need more than half precision.
        self.positions = encoder.float().image_positions().to(dtype)
        self.gaussian = encoder.pe_layer.positional_encoding_gaussian_matrix.float().clone()
        model.to(dtype)
        if channels_last:
            _lay_channels_last(model)
        _set_adapters(model, adapters)
        blocks = _blocks(model)
        self.attention = [
            _BlockAttention(block, choice.overall if index in model.config.global_blocks else choice.windowed)
            for index, block in enumerate(blocks)
        ]
        self.corners = torch.cat([cast(nn.Embedding, encoder.point_embeddings[i]).weight for i in (2, 3)])
        self._learn_tokens()
        self.blur = _blur(model, self.positions)
        self.block: Callable[..., Tensor] = _block_forward
        self.generate: Callable[..., Any] = model.prompt_generator
        self.decode: Callable[..., Tensor] = self._scores

    def _learn_tokens(self) -> None:
        """The decoder's tokens without a copy from the host: the module makes zeros there at every call."""
        decoder = self.model.sam_model.mask_decoder
        learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        corners = torch.zeros(2, learned.shape[1], dtype=learned.dtype, device=learned.device)
        all_learned = torch.cat([learned, corners, decoder.classifier_token_Adapter.weight])
        before = len(learned)

        def tokens(sparse: Tensor, classes: Tensor) -> Tensor:
            return all_learned + functional.pad(torch.cat([sparse, classes], dim=1), (0, 0, before, 0))

        decoder.__dict__["_tokens"] = tokens

    def compiled(self, backend: str) -> HalfNetwork:
        """Compile regions: one code for all blocks of a kind, the prompt generator, the decoder."""
        self.block = torch.compile(_block_forward, dynamic=False, backend=backend)
        self.generate = torch.compile(self.model.prompt_generator, dynamic=False, backend=backend)
        self.decode = torch.compile(self._scores, dynamic=False, backend=backend)
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """Normalised window `[1, C, T, P, P]` -> class scores `[1, K, T, P, P]`."""
        return self.decode(*self.proposals(*self.encode(image)))

    def encode(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Window -> what the global blocks give, `[T, E, g, g]` each, and the embedding `[T, C, g, g]`."""
        model, cfg = self.model, self.model.config
        encoder = model.sam_model.image_encoder
        x = model.first_conv(image.to(self.dtype)).transpose(1, 2)
        x = encoder.patch_embed(x.reshape(-1, *x.shape[2:])) + encoder.pos_embed[:, : cfg.grid, : cfg.grid]
        x = x.reshape(-1, cfg.frames, cfg.grid, cfg.grid, cfg.embed_dim) + encoder.temporal_embedding[:, :, None, None]
        x = x.reshape(-1, cfg.grid, cfg.grid, cfg.embed_dim)
        taps = []
        for index, (block, attention) in enumerate(zip(_blocks(model), self.attention, strict=True)):
            x = self.block(block, attention, x)
            if index in cfg.global_blocks:
                taps.append(x.permute(0, 3, 1, 2))
        return taps, encoder.neck(x.permute(0, 3, 1, 2))

    def proposals(self, taps: list[Tensor], embedding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `encode` gives -> the embedding, auxiliary masks and boxes, class tokens."""
        found = self.generate(taps, embedding)
        return embedding, found.masks, found.boxes, found.class_tokens

    def _scores(self, embedding: Tensor, masks: Tensor, boxes: Tensor, class_tokens: Tensor) -> Tensor:
        model, cfg = self.model, self.model.config
        prompts = model.sam_model.prompt_encoder
        corners = (model.box_prompts(boxes.float()).reshape(-1, 2, 2) + 0.5) / cfg.canvas_side
        phase = 2 * torch.pi * ((2 * corners - 1) @ self.gaussian)
        sparse = torch.cat([phase.sin(), phase.cos()], dim=-1).to(self.dtype) + self.corners
        embedded = prompts.embed_masks(model.mask_prompts(masks).to(self.dtype))
        decoded = model.sam_model.mask_decoder(embedding, self.positions, sparse, embedded, class_tokens)
        return model.semantic_scores(decoded.class_logits.float(), self._full_size(decoded.low_res_masks).float())

    def _full_size(self, low: Tensor) -> Tensor:
        if self.blur is None:
            return self.model.full_size_masks(low)
        cfg = self.model.config
        return (self.blur @ low @ self.blur.T).reshape(-1, cfg.queries, cfg.patch_side, cfg.patch_side)


def _blocks(model: MaskSAM) -> list[Block]:
    return [cast(Block, block) for block in model.sam_model.image_encoder.blocks]


def _lay_channels_last(model: MaskSAM) -> None:
    parts = [model.prompt_generator, model.first_conv]
    if model.config.head_width is not None:
        parts.append(model.final_conv)
    for part in parts:
        part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _set_adapters(model: MaskSAM, adapters: Adapters) -> None:
    for module in model.modules():
        if isinstance(module, DepthConvAdapter):
            module.kind = "fused" if adapters == "fused" else "eager"
            if adapters == "early GELU":
                module.__dict__["middle"] = _EarlyGeluMiddle(
                    module
                )  # as an attribute of the module the method would win
        elif isinstance(module, Attention):
            module.freeze_positions()


def _blur(model: MaskSAM, like: Tensor) -> Tensor | None:
    """The matrix that takes an axis of masks up to the canvas and back; None where a head enlarges masks."""
    cfg = model.config
    if cfg.head_width is not None:
        return None
    up = linear_matrix(cfg.mask_prompt_side, cfg.canvas_side)
    return torch.tensor(linear_matrix(cfg.canvas_side, cfg.patch_side) @ up, dtype=like.dtype, device=like.device)


class _EarlyGeluMiddle:
    """In the place of an adapter's `middle`: a pass of GELU, then the kernel of `early_gelu`."""

    def __init__(self, adapter: DepthConvAdapter) -> None:
        from benchmarks.gpu.early_gelu import middle_after_gelu

        conv, norm = adapter.T_DWconv, adapter.norm
        assert conv.bias is not None  # every adapter has one
        self.run, self.frames, self.eps = middle_after_gelu, adapter.frames, norm.eps
        tensors = (taps_from_conv(conv.weight), conv.bias, norm.weight, norm.bias)
        self.weights = [tensor.detach().clone() for tensor in tensors]

    def __call__(self, product: Tensor, bias: Tensor, inner: int = 1) -> Tensor:
        active = functional.gelu(product + bias).contiguous()
        return self.run(active, *self.weights, self.frames, inner, self.eps)


class _BlockAttention:
    """What the attention of one block needs, computed from its weights, and the formulation that runs."""

    def __init__(self, block: Block, name: str) -> None:
        attention, norm = block.attn, block.norm1
        self.run = FORMULATIONS[name]
        dim = len(norm.bias)
        shift = functional.linear(norm.bias, attention.qkv.weight[:dim], attention.qkv.bias[:dim])
        self.shift = shift.reshape(attention.heads, 1, -1).contiguous()
        self.weight, self.bias = (t.detach().clone() for t in attention.projection(norm.bias))
        fc1 = block.Space_Adapter.D_fc1
        self.narrow = (fc1.weight.float() @ self.weight.float()).to(self.weight.dtype)
        self.narrow_bias = functional.linear(self.bias, fc1.weight, fc1.bias)
        assert attention._frozen_positions is not None  # `_set_adapters` has frozen them
        self.tables = attention._frozen_positions
        prepare(attention.side, int(self.shift.shape[-1]), self.weight)


def _block_forward(block: Block, fast: _BlockAttention, x: Tensor) -> Tensor:
    """As `Block.forward`, with an exchangeable formulation of attention."""
    grid, attention, norm = int(x.shape[1]), block.attn, block.norm1
    dim, heads, side = int(x.shape[3]), attention.heads, attention.side
    normed = functional.layer_norm(x, norm.normalized_shape, norm.weight, None, norm.eps)
    squares = attention._squares(functional.linear(normed, attention.qkv.weight))
    q, k, v = squares.split(heads, dim=1)
    mixed = fast.run(q + fast.shift, k, v, *fast.tables, attention.scale)
    mixed = mixed.transpose(1, 2).reshape(-1, side, side, dim)
    hidden = block.Space_Adapter.middle(functional.linear(mixed, fast.narrow), fast.narrow_bias)
    y = functional.linear(merge_windows(mixed, grid), fast.weight, fast.bias)
    x = x + y + block.Space_Adapter.D_fc2(merge_windows(hidden, grid))
    z = block.norm2(x)
    return x + block.mlp(z) + ADAPTER_SCALE * block.MLP_Adapter(z)
