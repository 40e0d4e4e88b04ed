"""The prompt generator's and the decoder's exact rewrites, each against its definition, on ONNX Runtime's CPU.

    python -m benchmarks.graph_rewrites      # writes benchmarks/results/graph_rewrites.json; 15 minutes on two cores

At the sizes of the published networks, random weights, exported as a bundle's graphs are. Both forms are held to
the definition in torch before they are timed, in turns, in one process; medians. The encoder has its own:
`benchmarks.encoder_rewrites`.

Exact as well, and not taken: the mask head of ACDC, which resamples up to SAM's canvas and down again, as a filter of
three taps by three. In the graphs it is two small matrices, whatever the sizes, which are as fast.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.parts import Floats, compare, random_values
from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.bench.machine import provenance
from masksam_deploy.bundle.manifest import Port
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.blocks import linear_matrix, resize_plane
from masksam_export.families.masksam.model.image_tokens import DecodedImage
from masksam_export.families.masksam.official import ACDC, AMOS, SYNAPSE
from masksam_export.families.parts import GraphPart

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"ViT-B 1024 (ACDC)": ACDC, "ViT-H 512 (AMOS)": AMOS, "ViT-H 256 (Synapse)": SYNAPSE}
DEFINITION, REWRITTEN = "definition", "rewritten"

Shape = tuple[int, ...]


class Part(GraphPart):
    """A function of tensors of fixed shapes, but for the batch, as a graph."""

    variadic = True

    def __init__(self, module: nn.Module, function: Callable[..., Tensor], inputs: Mapping[str, Shape], output: Shape):
        ports = [
            Port(name=name, dtype="float32", shape=("B", *shape)) for name, shape in {**inputs, "out": output}.items()
        ]
        super().__init__(tuple(ports[:-1]), tuple(ports[-1:]))
        self.name, self.module, self.function = "part", module, function

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(*inputs)


def convolution(inputs: int, outputs: int, frames: int, side: int) -> dict[str, Any]:
    """A 3D convolution, whose products along the frames are saved."""
    conv = nn.Conv3d(inputs, outputs, 3, padding=1)
    return forms(conv, conv, {"x": (inputs, frames, side, side)}, (outputs, frames, side, side))


def after_doubling(inputs: int, beside: int, outputs: int, frames: int, side: int) -> dict[str, Any]:
    """A convolution of a map that was just doubled, of `beside` channels more."""
    up, conv = (
        nn.ConvTranspose3d(inputs, inputs, (1, 2, 2), (1, 2, 2)),
        nn.Conv3d(inputs + beside, outputs, 3, padding=1),
    )
    large = (frames, 2 * side, 2 * side)
    shapes = {"x": (inputs, frames, side, side)} | ({"rest": (beside, *large)} if beside else {})

    def both(x: Tensor, *rest: Tensor) -> Tensor:
        return torch.as_tensor(conv(torch.cat([up(x), *rest], dim=1)))

    return forms(nn.ModuleList([up, conv]), both, shapes, (outputs, *large))


def forms(
    module: nn.Module, function: Callable[..., Tensor], inputs: Mapping[str, Shape], output: Shape
) -> dict[str, Any]:
    """The same part, with its convolutions as they are and with fewer multiplications."""
    part = Part(module, function, inputs, output)
    return {
        "parts": {DEFINITION: part, REWRITTEN: part},
        "convolutions": {REWRITTEN: "saving"},
        "shapes": inputs,
        "expected": function,
    }


def generator(config: ModelConfig) -> dict[str, Any]:
    """A whole prompt generator, up to the mask's logits (what follows is a threshold), and its class tokens."""
    model = settled(MaskSAM(config)).prompt_generator
    grid, side = config.grid, config.patch_side
    shapes = {f"tap_{index}": (config.frames, config.embed_dim, grid, grid) for index in range(4)}
    shapes["embedding"] = (config.frames, config.prompt_dim, grid, grid)
    prompts = config.frames * config.queries

    def proposed(*features: Tensor) -> Tensor:
        *taps, embedding = (rows.flatten(0, 1) for rows in features)
        proposals = model(taps, embedding)
        # Boxes must stay in the graph, and jump where a logit is near zero.
        logits = proposals.mask_logits + 1e-20 * proposals.boxes.mean()
        tokens = proposals.class_tokens.reshape(-1, prompts * config.prompt_dim)
        return torch.cat([logits.reshape(-1, prompts * side * side), tokens], dim=1)

    return forms(model, proposed, shapes, (prompts * (side * side + config.prompt_dim),))


def decoder(config: ModelConfig) -> dict[str, Any]:
    """A whole mask decoder up to the masks, and the same as SAM defines it: with all mask tokens and the IoU head."""
    sam = settled(MaskSAM(config)).sam_model
    mask_decoder, encoder, cfg = sam.mask_decoder, sam.prompt_encoder, config
    positions = encoder.image_positions()
    prompts = (cfg.frames, cfg.queries)
    shapes = {
        "embedding": (cfg.frames, cfg.prompt_dim, cfg.grid, cfg.grid),
        "masks": (*prompts, cfg.mask_prompt_side, cfg.mask_prompt_side),
        "corners": (*prompts, 2, cfg.prompt_dim),
        "classes": (*prompts, 1, cfg.prompt_dim),
    }

    def rewritten(embedding: Tensor, masks: Tensor, corners: Tensor, classes: Tensor) -> Tensor:
        embedded = encoder.embed_masks(masks.reshape(-1, 1, *masks.shape[3:]))
        tokens = corners.flatten(0, 2), classes.flatten(0, 2)
        decoded = mask_decoder(embedding.flatten(0, 1), positions, tokens[0], embedded, tokens[1])
        return torch.as_tensor(decoded.low_res_masks.unflatten(0, (-1, *prompts))[:, :, :, 0])

    def definition(embedding: Tensor, masks: Tensor, corners: Tensor, classes: Tensor) -> Tensor:
        dense = encoder.mask_downscaling(masks.reshape(-1, 1, *masks.shape[3:]))
        dense = dense.unflatten(0, (-1, cfg.queries)) + embedding.flatten(0, 1)[:, None]
        image = DecodedImage(dense.flatten(0, 1).flatten(2).transpose(1, 2), cfg.queries)
        tokens = mask_decoder._tokens(corners.flatten(0, 2), classes.flatten(0, 2))
        q, decoded = mask_decoder.transformer(image, positions, tokens)
        maps = decoded.tokens().transpose(1, 2).unflatten(2, (cfg.grid, cfg.grid))
        for module in mask_decoder.output_upscaling:
            maps = module(maps)
        networks = enumerate(mask_decoder.output_hypernetworks_mlps, start=1)
        weights = torch.stack([network(q[:, token]) for token, network in networks], dim=1)
        found = (weights @ maps.flatten(2)).unflatten(2, maps.shape[2:])
        # What nobody reads must stay in the graph; too small to be seen.
        unread = found[:, 1:, 0, 0].mean() + mask_decoder.iou_prediction_head(q[:, 0]).mean()
        return torch.as_tensor((found[:, 0] + 1e-20 * unread).unflatten(0, (-1, *prompts)))

    side = cfg.mask_prompt_side
    parts = {
        DEFINITION: Part(sam, definition, shapes, (*prompts, side, side)),
        REWRITTEN: Part(sam, rewritten, shapes, (*prompts, side, side)),
    }
    return {"parts": parts, "convolutions": {}, "shapes": shapes, "expected": definition}


def mask_head(config: ModelConfig) -> dict[str, Any]:
    """The masks up to SAM's canvas and down to the patch, also as two matrices, and as a filter."""
    side, canvas, masks = config.patch_side, config.canvas_side, config.frames * config.queries
    blur = linear_matrix(canvas, side) @ linear_matrix(side, canvas)
    middle = blur[side // 2, side // 2 - 1 : side // 2 + 2]
    taps = torch.tensor(np.outer(middle, middle), dtype=torch.float32)[None, None]

    def resampled(x: Tensor) -> Tensor:
        for factor in (canvas / side, side / canvas):  # a factor, as a size would need the shape of the batch
            x = functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        return x

    def matrices(x: Tensor) -> Tensor:
        return resize_plane(x, blur, blur)

    def filtered(x: Tensor) -> Tensor:
        padded = functional.pad(x.reshape(-1, 1, side, side), (1, 1, 1, 1), mode="replicate")
        return functional.conv2d(padded, taps).reshape(-1, masks, side, side)

    shape, made = (masks, side, side), {DEFINITION: resampled, REWRITTEN: matrices, "filter": filtered}
    parts = {name: Part(nn.Module(), function, {"x": shape}, shape) for name, function in made.items()}
    return {"parts": parts, "convolutions": {}, "shapes": {"x": shape}, "expected": resampled}


def settled(model: MaskSAM) -> MaskSAM:
    """With weights that keep values near one, and no parameter that could be left out unnoticed."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


def cases() -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """Rewrite, where, and what makes its two forms."""
    yield "products along the frames", "256 to 128 channels, 4 frames of 256", partial(convolution, 256, 128, 4, 256)
    yield "products along the frames", "64 to 64 channels, 9 frames of 256", partial(convolution, 64, 64, 9, 256)
    yield "products along the frames", "128 to 128 channels, 26 frames of 64", partial(convolution, 128, 128, 26, 64)
    yield "both, after doubling", "128 channels, 4 frames of 128", partial(after_doubling, 128, 0, 128, 4, 128)
    yield "both, after doubling", "128 + 128 channels, 4 frames of 128", partial(after_doubling, 128, 128, 128, 4, 128)
    yield "both, after doubling", "64 channels, 9 frames of 128", partial(after_doubling, 64, 0, 64, 9, 128)
    for name, config in NETWORKS.items():
        yield "whole prompt generator", name, partial(generator, config)
    for name, config in NETWORKS.items():
        yield "whole mask decoder", name, partial(decoder, config)
    yield "mask head", "ViT-B 1024 (ACDC)", partial(mask_head, ACDC)


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores.")
    parser.add_argument("--only", default="", help="Rewrites whose name contains this.")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "graph_rewrites.json")
    arguments = parser.parse_args()
    timing = {"repeats": arguments.repeats, "threads": arguments.threads}
    wanted = [case for case in cases() if arguments.only in case[0]]
    if not wanted:
        parser.error(f"found no rewrite whose name contains '{arguments.only}'")
    if arguments.only and arguments.output == RESULTS / "graph_rewrites.json":
        parser.error("--only gives a part of the result: name another file with --output")
    facts, rows = provenance("torch", "onnx"), []
    for case in wanted:
        rows.append(measure(*case, **timing))
        result = {**timing, "rewrites": rows, **facts}
        with atomic_path(arguments.output) as temporary:  # after every row: nothing is lost
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


def measure(rewrite: str, where: str, make: Callable[[], dict[str, Any]], **timing: int) -> dict[str, Any]:
    """Medians in ms of all forms, and ratios to the definition."""
    torch.manual_seed(0)
    made = make()
    feeds: dict[str, Floats] = {
        name: random_values(1, *shape, seed=seed) for seed, (name, shape) in enumerate(made["shapes"].items())
    }
    for part in made["parts"].values():
        part.eval().requires_grad_(False)
    expected = made["expected"](*(torch.from_numpy(feed) for feed in feeds.values())).numpy()
    row = compare(made["parts"], feeds, expected, made["convolutions"], **timing)
    medians = row["median_ms"]
    faster = {name: round(medians[DEFINITION] / ms, 2) for name, ms in medians.items()}
    print(f"{rewrite}, {where}: {medians} ms, times as fast: {faster}", flush=True)
    return {"rewrite": rewrite, "where": where, **row, "times_faster_than_definition": faster}


if __name__ == "__main__":
    with torch.inference_mode():
        main()
