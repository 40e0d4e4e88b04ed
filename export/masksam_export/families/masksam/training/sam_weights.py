"""Starts a MaskSAM from Segment Anything's published weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter, DepthMlpAdapter
from masksam_export.families.masksam.official import ACDC, AMOS, SYNAPSE
from masksam_export.families.masksam.training.freezing import SAM_PREFIX, is_added_to_sam
from masksam_export.torch_files.quoting import some
from masksam_export.torch_files.safe_load import load_mapping
from masksam_export.torch_files.state_dict import named_tensors

Shape: TypeAlias = tuple[int, ...]

POSITIONS = "image_encoder.pos_embed"
TABLE = "image_encoder.blocks.{}.attn.rel_pos_h"
MASK_TOKENS = "mask_decoder.mask_tokens.weight"
WRAPPER_KEYS = ("model", "state_dict")
UNUSED = frozenset({"pixel_mean", "pixel_std"})
"""SAM's colour statistics, which some files store: MaskSAM sees normalised scans and never applies them."""
_BLOCK = re.compile(r"image_encoder\.blocks\.([0-9]{1,4})\.")
_NETWORKS = {"acdc": ACDC, "synapse": SYNAPSE, "amos": AMOS}


@dataclass(frozen=True)
class SamReport:
    """What became of a SAM checkpoint.

    Attributes:
        loaded: how many of the network's tensors now hold SAM's values, resampled ones included.
        resampled: position tables that were made for another size, by SAM's names.
        initial: the network's tensors that SAM does not have, by their official names; they keep the values they
            had, but for those that `silence_additions` zeroes.
        ignored: names in the file that are known to have no use here.
    """

    loaded: int
    resampled: tuple[str, ...]
    initial: tuple[str, ...]
    ignored: tuple[str, ...]


def load_sam_weights(model: MaskSAM, path: Path) -> SamReport:
    """Put a SAM checkpoint into `model.sam_model` and silence what MaskSAM adds, so that the network starts as SAM.

    Reads a plain state dict with the names of Meta's release (`sam_vit_b_01ec64.pth`, `sam_vit_h_4b8939.pth`; MedSAM
    keeps them), bare or under `model` or `state_dict`; nothing in it is ever executed. The values are copied into
    the network's own memory, which therefore must not be on the meta device; either all of them are or none.

    Raises:
        CheckpointError: the file is unsafe or damaged, holds values that are not finite, or does not fit the
            network; see `check_sam_shapes`.
    """
    name = one_line(path.name)
    weights = _sam_state(load_mapping(path), name)
    resampled = check_sam_shapes(model, {key: tuple(value.shape) for key, value in weights.items()}, name)
    own = _sam_tensors(model)
    values = {key: _fitted(weights[key], target) for key, target in own.items()}
    broken = [key for key, value in values.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(
            f"SAM checkpoint '{name}' has NaN, infinite or too large values in {some(broken)}; expected finite "
            "float32 values: get the file again"
        )
    with torch.no_grad():
        for key, target in own.items():
            target.copy_(values[key])
    silence_additions(model)
    return SamReport(
        loaded=len(own),
        resampled=resampled,
        initial=_names_sam_does_not_have(model),
        ignored=tuple(sorted(weights.keys() & UNUSED)),
    )


def check_sam_shapes(model: MaskSAM, shapes: Mapping[str, Shape], source: str) -> tuple[str, ...]:
    """The position tables of a SAM state dict that have to be resampled for this network; everything else fits.

    Reads shapes only, so `model` may be on the meta device.

    Args:
        model: the network to be started from SAM.
        shapes: tensor shapes by SAM's names.
        source: what to call the file in messages.

    Raises:
        CheckpointError: another depth, width, arrangement of global blocks or number of mask tokens; or tensors that
            are missing, not SAM's, or of the wrong shape.
    """
    problem = _other_network(model, shapes)
    if problem:
        raise CheckpointError(f"SAM checkpoint '{source}' is for another network: {problem}")
    own = {key: tuple(tensor.shape) for key, tensor in _sam_tensors(model).items()}
    expected = {key: _shape_in_file(key, shape, model, shapes) for key, shape in own.items()}
    kinds = {
        "missing": expected.keys() - shapes.keys(),
        "not part of SAM": shapes.keys() - expected.keys() - UNUSED,
        "wrong shape": {
            f"{key} {list(shapes[key])} instead of {list(shape)}"
            for key, shape in expected.items()
            if shapes.get(key, shape) != shape
        },
    }
    problems = [f"{kind}: {some(sorted(found))}" for kind, found in kinds.items() if found]
    if problems:
        raise CheckpointError(
            f"SAM checkpoint '{source}' does not fit the network: {'; '.join(problems)}; expected exactly the tensors "
            "of Meta's release, as in sam_vit_b_01ec64.pth: get the file again, or choose the one for this --network"
        )
    return tuple(key for key, shape in own.items() if expected[key] != shape)


def silence_additions(model: MaskSAM) -> None:
    """Zero what MaskSAM adds to SAM's activations, until it has learned to add something.

    That is the last layer of every adapter, `D_fc2`, and both temporal embeddings.
    """
    for module in model.modules():
        if isinstance(module, DepthConvAdapter | DepthMlpAdapter):
            nn.init.zeros_(module.D_fc2.weight)
            nn.init.zeros_(module.D_fc2.bias)
    nn.init.zeros_(model.sam_model.image_encoder.temporal_embedding)
    nn.init.zeros_(model.sam_model.prompt_encoder.temporal_embedding)


def _sam_state(content: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The state dict of a SAM file, without wrappers."""
    state: object = next((content[key] for key in WRAPPER_KEYS if key in content), content)
    return named_tensors(state, f"SAM checkpoint '{source}'", "sam_vit_b_01ec64.pth")


def _sam_tensors(model: MaskSAM) -> dict[str, Tensor]:
    """The network's own parameters and buffers that SAM has as well, by SAM's names."""
    state = model.sam_model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if not is_added_to_sam(name)}


def _names_sam_does_not_have(model: MaskSAM) -> tuple[str, ...]:
    """Official names, without the second ones that official state dicts give to the same tensors."""
    distinct: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith(SAM_PREFIX) or is_added_to_sam(name):
            distinct.setdefault(id(tensor), name)
    return tuple(distinct.values())


def _other_network(model: MaskSAM, shapes: Mapping[str, Shape]) -> str:
    """Why the file is for a network of other sizes, or nothing; one reason instead of hundreds of shapes."""
    absent = [name for name in (POSITIONS, TABLE.format(0), MASK_TOKENS) if name not in shapes]
    if absent:
        return (
            f"it has no {some(absent)}; expected SAM's own names (image_encoder.*, prompt_encoder.*, mask_decoder.*), "
            "as in Meta's sam_vit_b_01ec64.pth"
        )
    config, positions = model.config, shapes[POSITIONS]
    if len(positions) != 4 or positions[0] != 1 or positions[1] != positions[2] or 0 in positions:
        return f"{POSITIONS} is {list(positions)}; expected [1, n, n, width]"
    depth, width = len(_blocks(shapes)), positions[3]
    if (depth, width) != (config.depth, config.embed_dim):
        return (
            f"the file has {depth} blocks of width {width}, the network {config.depth} of {config.embed_dim}: "
            f"{_advice(depth, width)}"
        )
    tokens = shapes[MASK_TOKENS][0] if shapes[MASK_TOKENS] else 0
    if tokens != config.mask_tokens:
        return (
            f"the file has {tokens} mask tokens, the network {config.mask_tokens}: set mask_tokens={tokens} in the "
            "network's configuration"
        )
    return _other_attention(model, shapes)


def _advice(depth: int, width: int) -> str:
    fitting = [name for name, config in _NETWORKS.items() if (config.depth, config.embed_dim) == (depth, width)]
    if fitting:
        return f"choose --network {' or '.join(fitting)}"
    return (
        "choose --network acdc with a ViT-B file (sam_vit_b_01ec64.pth), or synapse or amos with a ViT-H file "
        "(sam_vit_h_4b8939.pth)"
    )


def _other_attention(model: MaskSAM, shapes: Mapping[str, Shape]) -> str:
    """Tables of whole canvases must not be resampled into tables of windows, nor the reverse."""
    theirs = _whole_canvas_blocks(shapes)
    ours = _whole_canvas_blocks({name: tuple(tensor.shape) for name, tensor in _sam_tensors(model).items()})
    if not any(TABLE.format(block) in shapes for block in theirs ^ ours):  # a missing table is no other network
        return ""
    return (
        f"its position tables cover the whole canvas in blocks {_numbers(theirs)}, the network's in {_numbers(ours)}: "
        "choose the --network that has the file's global blocks"
    )


def _whole_canvas_blocks(shapes: Mapping[str, Shape]) -> set[int]:
    """Blocks with a table of every distance on the canvas: the global ones, or all where windows are as large."""
    rows = 2 * shapes[POSITIONS][1] - 1
    return {block for block in _blocks(shapes) if shapes.get(TABLE.format(block), ())[:1] == (rows,)}


def _blocks(shapes: Mapping[str, Shape]) -> set[int]:
    return {int(match[1]) for match in map(_BLOCK.match, shapes) if match}


def _shape_in_file(name: str, own: Shape, model: MaskSAM, shapes: Mapping[str, Shape]) -> Shape:
    """The shape that a file must have for a tensor of ours: its own canvas and window, all else as here."""
    canvas = shapes[POSITIONS][1]
    if name == POSITIONS:
        return (1, canvas, canvas, own[3])
    if not name.endswith((".rel_pos_h", ".rel_pos_w")):
        return own
    block = _BLOCK.match(name)
    if block and int(block[1]) in model.config.global_blocks:
        return (2 * canvas - 1, own[1])
    return (_window_rows(model, shapes) or own[0], own[1])


def _window_rows(model: MaskSAM, shapes: Mapping[str, Shape]) -> int | None:
    """Rows of the file's tables in windowed blocks, as the first of them has it; None if that is no table."""
    first = min(set(range(model.config.depth)) - set(model.config.global_blocks))
    table = shapes.get(TABLE.format(first), ())
    return table[0] if len(table) == 2 and table[0] % 2 == 1 else None


def _fitted(value: Tensor, target: Tensor) -> Tensor:
    """The value in float32, position tables resampled to the target's size.

    The canvas grid bicubically, as Touvron et al. 2021 (DeiT) do for finer images; tables of distances
    linearly, as SAM's `get_rel_pos` does when it attends over another size.
    """
    value = value.to(torch.float32)
    if value.shape == target.shape:
        return value
    if value.ndim == 2:
        return functional.interpolate(value.T[None], size=target.shape[0], mode="linear", align_corners=False)[0].T
    size = (target.shape[1], target.shape[2])
    channel_first = value.permute(0, 3, 1, 2)
    resampled = functional.interpolate(channel_first, size=size, mode="bicubic", align_corners=False, antialias=False)
    return resampled.permute(0, 2, 3, 1)


def _numbers(blocks: set[int]) -> str:
    return some([str(block) for block in sorted(blocks)], limit=32) or "none"
