"""MaskSAM: a window of a scan to class scores, without prompts from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model.blocks import StackedConvBlocks, linear_matrix, resize_plane, upsampling
from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter
from masksam_export.families.masksam.model.image_encoder import ImageEncoder
from masksam_export.families.masksam.model.mask_decoder import MaskDecoder
from masksam_export.families.masksam.model.prompt_encoder import PromptEncoder
from masksam_export.families.masksam.model.prompt_generator import PromptGenerator, Proposals, binarise

GENERATOR_PREFIX = "prompt_generator."


@dataclass(frozen=True)
class Predictions:
    """Everything the network predicts for a window; see the architecture's names.

    Attributes:
        proposals: auxiliary masks and boxes, class tokens.
        logits: class logits `[B*T, Q, K+1]`, the last entry "no object".
        masks: mask logits `[B*T, Q, P, P]`.
    """

    proposals: Proposals
    logits: Tensor
    masks: Tensor


class Sam(nn.Module):
    """The part of the network that comes from SAM."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)


class MaskSAM(nn.Module):
    """The whole network: stem, encoder, prompt generator, prompt encoder, mask decoder, mask head.

    Args:
        config: every size of the network.
        adapter: how the depth-convolution adapters run: "eager" in plain torch; "fused" as Triton kernels (inference on
            an NVIDIA GPU; needs the `kernels` extra). The state dict is the same.
    """

    def __init__(self, config: ModelConfig, adapter: Literal["eager", "fused"] = "eager") -> None:
        super().__init__()
        self.config = config
        self.sam_model = Sam(config)
        self.first_conv = stem(config)
        self.prompt_generator = PromptGenerator(config)
        if config.head_width is not None:
            self.final_conv = mask_head(config, config.head_width)
        for module in self.modules():
            if isinstance(module, DepthConvAdapter):
                module.kind = adapter
        # Official state dicts keep the generator's parts at the top level.
        self.register_state_dict_post_hook(_to_official_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_official_names)  # type: ignore[no-untyped-call]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised window `[B, Cin, T, P, P]` -> class scores `[B, K, T, P, P]`, non-negative, up to Q."""
        predictions = self.predict(image)
        return self.semantic_scores(predictions.logits, predictions.masks)

    def predict(self, image: Tensor) -> Predictions:
        """Normalised window `[B, Cin, T, P, P]` -> everything that training needs."""
        taps, embedding = self.encode(image)
        proposals = self.prompt_generator(taps, embedding)
        logits, masks = self.decode(
            embedding,
            self.mask_prompts(proposals.masks),
            self.box_prompts(proposals.boxes),
            proposals.class_tokens,
            self.sam_model.prompt_encoder.image_positions(),
        )
        return Predictions(proposals, logits, masks)

    def encode(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Window -> taps `[B*T, E, g, g]` and embedding `[B*T, C, g, g]`."""
        x = self.first_conv(image).transpose(1, 2)
        taps, embedding = self.sam_model.image_encoder(x.reshape(-1, *x.shape[2:]))
        return taps, embedding

    def mask_prompts(self, masks: Tensor) -> Tensor:
        """Auxiliary masks `[B*T, Q, P, P]` -> 0/1 prompts `[B*T*Q, 1, 4g, 4g]` (nearest)."""
        side = self.config.mask_prompt_side
        step = self.config.patch_side // side
        return binarise(masks[..., ::step, ::step]).reshape(-1, 1, side, side)

    def box_prompts(self, boxes: Tensor) -> Tensor:
        """Auxiliary boxes `[B*T, Q, 4]` in [0, 1] -> whole pixels `[B*T*Q, 4]`."""
        pixels = (boxes * self.config.patch_side).floor()
        if self.config.upsamples_input:  # floored on the patch, then moved to the canvas
            pixels = pixels * (self.config.canvas_side / self.config.patch_side)
        return pixels.reshape(-1, 4)

    def decode(
        self,
        embedding: Tensor,
        mask_prompts: Tensor,
        box_prompts: Tensor,
        class_tokens: Tensor,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Prompts of all queries, rows (b t q) -> class logits `[B*T, Q, K+1]`, mask logits `[B*T, Q, P, P]`."""
        encoder = self.sam_model.prompt_encoder
        decoded = self.sam_model.mask_decoder(
            embedding,
            positions,
            encoder.embed_boxes(box_prompts),
            encoder.embed_masks(mask_prompts),
            class_tokens,
        )
        return decoded.class_logits, self.full_size_masks(decoded.low_res_masks)

    def full_size_masks(self, low_res: Tensor) -> Tensor:
        """`[B*T*Q, 1, 4g, 4g]` -> mask logits `[B*T, Q, P, P]`."""
        cfg, side = self.config, self.config.patch_side
        if cfg.head_width is None:
            # Officially bilinear up to the canvas and back: a mild blur. Both steps are linear and separable, so
            # one small matrix per axis does the same without canvas-sized masks.
            blur = linear_matrix(cfg.canvas_side, side) @ linear_matrix(cfg.mask_prompt_side, cfg.canvas_side)
            return resize_plane(low_res, blur, blur).reshape(-1, cfg.queries, side, side)
        low = low_res.reshape(-1, cfg.frames, cfg.queries, *low_res.shape[-2:]).transpose(1, 2)
        return self.final_conv(low).transpose(1, 2).reshape(-1, cfg.queries, side, side)

    def semantic_scores(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Sum over queries of class probability (without "no object") times mask probability."""
        cfg, side = self.config, self.config.patch_side
        classes = logits.softmax(dim=-1)[..., : cfg.classes].transpose(1, 2)
        scores = classes @ masks.sigmoid().reshape(-1, cfg.queries, side * side)
        return scores.reshape(-1, cfg.frames, cfg.classes, side, side).transpose(1, 2)


def stem(config: ModelConfig) -> nn.Sequential:
    """Input channels to SAM's three; for `acdc` with a learned fourfold enlargement. Kernels are always 3x3x3."""
    kernel, bias = (3, 3, 3), config.conv_bias
    if not config.upsamples_input:
        (width,) = config.stem_widths
        return nn.Sequential(
            StackedConvBlocks(1, (config.in_channels, width), kernel, config),
            StackedConvBlocks(1, (width, 3), kernel, config),
        )
    narrow, wide = config.stem_widths
    return nn.Sequential(
        StackedConvBlocks(1, (config.in_channels, narrow), kernel, config),
        upsampling(narrow, narrow, bias=bias),
        nn.InstanceNorm3d(narrow),
        nn.GELU(),
        upsampling(narrow, wide, bias=bias),
        nn.InstanceNorm3d(wide),
        nn.GELU(),
        StackedConvBlocks(1, (wide, wide), kernel, config),
        StackedConvBlocks(1, (wide, 3), kernel, config),
    )


def mask_head(config: ModelConfig, width: int) -> nn.Sequential:
    """Low resolution masks of all queries together to the patch's size."""
    bias = config.conv_bias
    return nn.Sequential(
        StackedConvBlocks(1, (config.queries, width), (3, 3, 3), config),
        upsampling(width, width, bias=bias),
        nn.InstanceNorm3d(width),
        nn.GELU(),
        upsampling(width, width, bias=bias),
        nn.InstanceNorm3d(width),
        nn.GELU(),
        nn.Conv3d(width, config.queries, 3, padding=1, bias=bias),
    )


def _to_official_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + GENERATOR_PREFIX)]:
        state[prefix + name.removeprefix(prefix + GENERATOR_PREFIX)] = state.pop(name)


def _from_official_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    tops = {name.split(".")[0] for name, _ in module.get_submodule(GENERATOR_PREFIX.rstrip(".")).named_children()}
    for name in list(state):
        if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in tops:
            state[prefix + GENERATOR_PREFIX + name.removeprefix(prefix)] = state.pop(name)
