"""The three traceable parts of MaskSAM, with the ports by which they chain.

Every port leads with the dynamic batch B, and everything discontinuous (the mask threshold, the floored boxes)
stays inside the prompt generator: what crosses to the decoder are whole pixels and zeros and ones, which any
precision carries exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from masksam_deploy.bundle.manifest import Port
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter
from masksam_export.families.masksam.model.image_encoder import Attention
from masksam_export.families.parts import GraphPart, port

TAPS = ("tap_0", "tap_1", "tap_2", "tap_3")


class Encoder(GraphPart):
    """`image [B, Cin, T, P, P]` -> four taps `[B, T, E, g, g]` and the embedding `[B, T, C, g, g]`."""

    name = "encoder"

    def __init__(self, model: MaskSAM) -> None:
        config = model.config
        super().__init__((image_port(config),), (*tap_ports(config), embedding_port(config)))
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        taps, embedding = self.model.encode(image)
        return tuple(split_frames(rows, self.model.config) for rows in (*taps, embedding))


class Generator(GraphPart):
    """Taps and embedding -> 0/1 mask prompts `[B, T, Q, 4g, 4g]`, boxes in pixels and class tokens."""

    name = "prompt_generator"
    variadic = True

    def __init__(self, model: MaskSAM) -> None:
        config = model.config
        super().__init__((*tap_ports(config), embedding_port(config)), prompt_ports(config))
        self.model = model

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        config = self.model.config
        *taps, embedding = (rows.flatten(0, 1) for rows in features)
        proposals = self.model.prompt_generator(taps, embedding)
        side, lead = config.mask_prompt_side, (-1, config.frames, config.queries)
        return (
            self.model.mask_prompts(proposals.masks).reshape(*lead, side, side),
            self.model.box_prompts(proposals.boxes).reshape(*lead, 4),
            proposals.class_tokens.reshape(*lead, config.prompt_dim),
        )


class Decoder(GraphPart):
    """Embedding and prompts -> class scores `semseg [B, K, T, P, P]`."""

    name = "decoder"
    positions: Tensor

    def __init__(self, model: MaskSAM) -> None:
        config = model.config
        super().__init__((embedding_port(config), *prompt_ports(config)), (semseg_port(config),))
        self.model = model
        with torch.no_grad():  # the image's positions do not depend on the input
            positions = model.sam_model.prompt_encoder.image_positions()
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, embedding: Tensor, masks: Tensor, boxes: Tensor, class_tokens: Tensor) -> Tensor:
        """See the class."""
        config, side = self.model.config, self.model.config.mask_prompt_side
        logits, mask_logits = self.model.decode(
            embedding.reshape(-1, config.prompt_dim, config.grid, config.grid),
            masks.reshape(-1, 1, side, side),
            boxes.reshape(-1, 4),
            class_tokens.reshape(-1, 1, config.prompt_dim),
            self.positions,
        )
        return self.model.semantic_scores(logits, mask_logits)


@contextmanager
def graph_parts(model: MaskSAM) -> Iterator[tuple[Encoder, Generator, Decoder]]:
    """The three parts of a model, while it is `traceable`."""
    with traceable(model):
        yield Encoder(model), Generator(model), Decoder(model)


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Meanwhile input-independent position tables are computed once, for a smaller graph.

    Depth-convolution adapters leave one node each in a traced graph; they cannot be run meanwhile.
    """
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    adapters = [module for module in model.modules() if isinstance(module, DepthConvAdapter)]
    kinds = [adapter.kind for adapter in adapters]
    for attention in attentions:
        attention.freeze_positions()
    for adapter in adapters:
        adapter.kind = "node"
    try:
        yield
    finally:
        for attention in attentions:
            attention.thaw_positions()
        for adapter, kind in zip(adapters, kinds, strict=True):
            adapter.kind = kind


def split_frames(rows: Tensor, config: ModelConfig) -> Tensor:
    """`[B*T, c, h, w]` -> `[B, T, c, h, w]`."""
    return rows.reshape(-1, config.frames, *rows.shape[1:])


def image_port(config: ModelConfig) -> Port:
    """One batch of normalised windows."""
    return port("image", *config.input_shape)


def tap_ports(config: ModelConfig) -> tuple[Port, ...]:
    """Encoder features after each global block."""
    return tuple(port(name, config.frames, config.embed_dim, config.grid, config.grid) for name in TAPS)


def embedding_port(config: ModelConfig) -> Port:
    """The encoder's final features."""
    return port("embedding", config.frames, config.prompt_dim, config.grid, config.grid)


def prompt_ports(config: ModelConfig) -> tuple[Port, ...]:
    """Mask prompts (0 or 1), box prompts (whole pixels of the canvas: x1, y1, x2, y2), class tokens."""
    lead, side = (config.frames, config.queries), config.mask_prompt_side
    return (
        port("mask_prompts", *lead, side, side),
        port("box_prompts", *lead, 4),
        port("class_tokens", *lead, config.prompt_dim),
    )


def semseg_port(config: ModelConfig) -> Port:
    """Non-negative class scores."""
    return port("semseg", config.classes, *config.input_shape[1:])
