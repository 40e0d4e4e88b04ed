"""Does the exported chain compute what the network computes? Checked on every export, before a bundle exists.

The network is discontinuous in two places: a mask pixel at exactly one half, a box edge at exactly a whole
pixel. There float32 rounding decides, in any implementation. Such ties are recognised by the reference's own
distance from the threshold; the decoder is then compared on the reference's prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from masksam_deploy.base.errors import ParityError
from masksam_deploy.bundle.manifest import Decision, Graph
from masksam_deploy.metrics.parity import compare_scores, max_abs_error
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.onnxruntime import OnnxRuntimeSession
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.graphs import TAPS, split_frames
from masksam_export.families.masksam.model import MaskSAM

Float = NDArray[np.float32]
Progress = Callable[[str], None]

SCORE_TOLERANCE = 1e-3
"""Absolute, on `semseg`; float32 against float64 is off by up to 4e-5."""
AGREEMENT = 0.9999
"""Least share of the voxels, ties left out, that get the same label."""
TIE_MARGIN = 1e-4
"""Voxels whose scores are closer than this to another label are ties: ten times the float32 noise, a tenth of the
tolerance."""
FEATURE_TOLERANCE = 1e-3
"""Of the largest reference value (at least 1), on the ports inside the chain."""
TIE = 1e-4
"""Distance of a mask probability from one half, or of a box edge from a whole pixel (as a share of the side),
within which rounding decides: what `FEATURE_TOLERANCE` on a logit leaves after a sigmoid, and less."""
BATCH_CHECK_LIMIT = 50_000_000
"""Parameters. Larger networks are not also run with two windows in one batch: that doubles the memory."""


@dataclass(frozen=True)
class Reference:
    """What the torch network computes for one input: all ports, and the distances from its thresholds."""

    ports: dict[str, Float]
    mask_distance: Float
    """Of each mask prompt from the threshold, `[B, T, Q, 4g, 4g]`."""
    nearest_mask_distance: Float
    """Smallest distance over all pixels of a mask, `[B, T, Q]`; decides boxes."""
    box_distance: Float
    """Of each box edge from the next whole pixel, over the side, `[B, T, Q, 4]`."""


@dataclass
class _Check:
    """One input's figures, filled while its graphs run."""

    name: str
    reference: Reference
    figures: dict[str, JsonValue] = field(default_factory=dict)
    chain: dict[str, Float] = field(default_factory=dict)
    tied: bool = False


def example_inputs(config: ModelConfig, seed: int = 0) -> dict[str, Float]:
    """Two windows `[1, C, T, P, P]`: seeded noise, and bright balls on a gradient, both normalised."""
    generator = np.random.default_rng(seed)
    shape = config.input_shape
    noise = generator.standard_normal(shape)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape[1:]), indexing="ij")
    structured = np.empty(shape)
    for channel in range(shape[0]):
        structured[channel] = 0.5 * grid[1] + 0.25 * grid[2]
        for _ in range(4):
            centre, radius = generator.uniform(-0.6, 0.6, 3), generator.uniform(0.15, 0.5)
            distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
            structured[channel] += generator.uniform(0.5, 2.0) * (distance < radius**2)
    return {name: _normalised(array) for name, array in (("noise", noise), ("structured", structured))}


def reference_outputs(model: MaskSAM, image: Float) -> Reference:
    """Run the network in torch and keep what crosses between the graphs."""
    config = model.config
    with torch.inference_mode():
        taps, embedding = model.encode(torch.from_numpy(image))
        proposals = model.prompt_generator(taps, embedding)
        masks, boxes = model.mask_prompts(proposals.masks), model.box_prompts(proposals.boxes)
        positions = model.sam_model.prompt_encoder.image_positions()
        logits, mask_logits = model.decode(embedding, masks, boxes, proposals.class_tokens, positions)
        scores = model.semantic_scores(logits, mask_logits)
        lead = (-1, config.frames, config.queries)
        step = config.patch_side // config.mask_prompt_side
        distance = (proposals.masks - 0.5).abs()
        pixels = proposals.boxes * config.patch_side
        features = zip((*TAPS, "embedding"), (*taps, embedding), strict=True)
        return Reference(
            ports={
                **{name: _numpy(split_frames(rows, config)) for name, rows in features},
                "mask_prompts": _numpy(masks.reshape(*lead, *masks.shape[-2:])),
                "box_prompts": _numpy(boxes.reshape(*lead, 4)),
                "class_tokens": _numpy(proposals.class_tokens.reshape(*lead, config.prompt_dim)),
                "image": image,
                "semseg": _numpy(scores),
            },
            mask_distance=_numpy(distance[..., ::step, ::step].reshape(*lead, *masks.shape[-2:])),
            nearest_mask_distance=_numpy(distance.amin(dim=(-2, -1)).reshape(lead)),
            box_distance=_numpy((pixels - pixels.round()).abs().reshape(*lead, 4) / config.patch_side),
        )


def verify_chain(
    directory: Path,
    graphs: Iterable[Graph],
    references: Mapping[str, Reference],
    decision: Decision,
    *,
    batched: bool,
    device: Device = "cpu",
    progress: Progress = lambda _: None,
) -> dict[str, JsonValue]:
    """Run the graphs in ONNX Runtime and compare every port with the network's.

    Each graph is loaded once and freed before the next, so that a large network needs little more than its
    largest graph.

    Args:
        directory: where the graphs' files lie.
        graphs: in the order in which they chain.
        references: by input name, from `reference_outputs`.
        decision: the rule by which class scores become labels.
        batched: whether also to run all inputs as one batch.
        device: where ONNX Runtime runs.
        progress: called with a line of text at each step.

    Returns:
        The figures, by input name, for the bundle's provenance.

    Raises:
        ParityError: the graphs disagree with the network.
    """
    checks = [_Check(name, reference) for name, reference in references.items()]
    if batched:
        checks.append(_Check("batch", _stack(list(references.values()))))
    for check in checks:
        check.chain["image"] = check.reference.ports["image"]
    for graph in graphs:
        progress(f"verifying {graph.name} in ONNX Runtime")
        session = OnnxRuntimeSession(graph, directory / graph.file, device=device, lean=True)
        for check in checks:
            outputs = session.run({port.name: check.chain[port.name] for port in graph.inputs})
            _compare(check, graph, outputs, decision)
            check.chain.update(outputs)
            if check.tied and "semseg" not in outputs:
                # From here on both sides continue from the same prompts.
                check.chain.update({port.name: check.reference.ports[port.name] for port in graph.outputs})
        session.close()
    return {check.name: check.figures for check in checks}


def _compare(check: _Check, graph: Graph, outputs: Mapping[str, Float], decision: Decision) -> None:
    errors = {name: max_abs_error(value, check.reference.ports[name]) for name, value in outputs.items()}
    check.figures.update({f"{name}_max_abs_error": error for name, error in errors.items()})
    if "semseg" in outputs:
        _judge_scores(check, outputs["semseg"], decision)
        return
    if {"mask_prompts", "box_prompts"} <= outputs.keys():
        _judge_prompts(check, outputs)
        errors = {"class_tokens": errors["class_tokens"]}
    for name, error in errors.items():
        scale = max(1.0, float(np.abs(check.reference.ports[name]).max()))
        if not error <= FEATURE_TOLERANCE * scale:
            raise ParityError(
                f"graph '{graph.name}' disagrees with the network on '{name}' for the {check.name} input: "
                f"maximum error {error:.3g}, allowed {FEATURE_TOLERANCE * scale:.3g}; no bundle was written"
            )


def _judge_prompts(check: _Check, outputs: Mapping[str, Float]) -> None:
    """Prompts must be equal, except where the reference itself sits on a threshold."""
    reference = check.reference
    flipped = outputs["mask_prompts"] != reference.ports["mask_prompts"]
    moved = outputs["box_prompts"] != reference.ports["box_prompts"]
    wrong_masks = flipped & ~(reference.mask_distance <= TIE)
    may_move = (reference.box_distance <= TIE) | (reference.nearest_mask_distance <= TIE)[..., None]
    wrong_boxes = moved & ~may_move
    check.tied = bool(flipped.any() or moved.any())
    check.figures["tied_mask_pixels"] = int(flipped.sum())
    check.figures["tied_box_edges"] = int(moved.sum())
    if wrong_masks.any() or wrong_boxes.any():
        raise ParityError(
            f"the exported prompt generator disagrees with the network for the {check.name} input: "
            f"{int(wrong_masks.sum())} mask pixels and {int(wrong_boxes.sum())} box edges differ away from their "
            "thresholds; no bundle was written"
        )


def _judge_scores(check: _Check, scores: Float, decision: Decision) -> None:
    parity = compare_scores(scores, check.reference.ports["semseg"], decision, tie_margin=TIE_MARGIN)
    check.figures[f"{decision}_agreement"] = parity.agreement
    check.figures[f"{decision}_agreement_without_ties"] = parity.decided_agreement
    if not (parity.max_abs_error <= SCORE_TOLERANCE and parity.decided_agreement >= AGREEMENT):
        raise ParityError(
            f"the exported graphs disagree with the network for the {check.name} input: maximum error of the class "
            f"scores {parity.max_abs_error:.3g} (allowed {SCORE_TOLERANCE:g}), same class on "
            f"{parity.decided_agreement:.4%} of the voxels (needed {AGREEMENT:.2%}); no bundle was written"
        )


def _stack(references: list[Reference]) -> Reference:
    """Several inputs as one batch; windows do not influence each other."""

    def joined(arrays: Iterable[Float]) -> Float:
        return np.concatenate(list(arrays), axis=0)

    return Reference(
        ports={name: joined(r.ports[name] for r in references) for name in references[0].ports},
        mask_distance=joined(r.mask_distance for r in references),
        nearest_mask_distance=joined(r.nearest_mask_distance for r in references),
        box_distance=joined(r.box_distance for r in references),
    )


def _normalised(array: NDArray[np.float64]) -> Float:
    return ((array - array.mean()) / max(array.std(), 1e-8)).astype(np.float32)[None]


def _numpy(tensor: Tensor) -> Float:
    return tensor.contiguous().numpy()
