"""Reads a trained MaskSAM from a checkpoint, which is treated as hostile: nothing in it is ever executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.bundle.manifest import Labels
from masksam_deploy.bundle.nnunet import Preprocessing, preprocessing_problems
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.weights import config_from_shapes
from masksam_export.plans import Plan
from masksam_export.torch_files.checkpoint_file import CheckpointFile
from masksam_export.torch_files.json_file import read_json
from masksam_export.torch_files.quoting import quoted, reason, some
from masksam_export.torch_files.state_dict import in_float32, listed

DEFAULT_CONFIGURATION = "3d_fullres"
EXPECTED = "an nnU-Net trainer checkpoint with 'network_weights', or a plain state dict"


@dataclass(frozen=True)
class TrainedMaskSAM:
    """A network with all that inference needs to know about its training.

    Attributes:
        model: the network in evaluation mode, float32, on the CPU.
        preprocessing: how scans become network input.
        labels: what the classes mean.
        mirror_axes: axes of the transposed array that test-time mirroring may flip.
        source: the checkpoint file.
        sha256: hash of that file.
        notes: what was inferred, for people.
    """

    model: MaskSAM
    preprocessing: Preprocessing
    labels: Labels
    mirror_axes: tuple[int, ...]
    source: Path
    sha256: str
    notes: tuple[str, ...]

    @property
    def config(self) -> ModelConfig:
        """The network's configuration."""
        return self.model.config


def load_checkpoint(
    path: str | Path,
    *,
    plans: str | Path | None = None,
    dataset: str | Path | None = None,
    configuration: str | None = None,
    mirror_axes: tuple[int, ...] | None = None,
    owned: bool = False,
) -> TrainedMaskSAM:
    """Read a file; see `read_masksam`.

    Raises:
        CheckpointError: the file is unsafe, damaged, incomplete or inconsistent; the message lists all of it.
    """
    return read_masksam(
        CheckpointFile.read(path),
        plans=plans,
        dataset=dataset,
        configuration=configuration,
        mirror_axes=mirror_axes,
        owned=owned,
    )


def read_masksam(
    file: CheckpointFile,
    *,
    plans: str | Path | None = None,
    dataset: str | Path | None = None,
    configuration: str | None = None,
    mirror_axes: tuple[int, ...] | None = None,
    owned: bool = False,
) -> TrainedMaskSAM:
    """A network from an nnU-Net trainer checkpoint, or from a plain state dict with its plans and dataset.json.

    Args:
        file: `checkpoint_final.pth`, or a state dict.
        plans: nnU-Net plans file; overrides what the checkpoint carries.
        dataset: nnU-Net dataset.json; overrides what the checkpoint carries.
        configuration: configuration of the plans; by default the checkpoint's own, else `3d_fullres`.
        mirror_axes: allowed mirror axes; by default the checkpoint's own, else none.
        owned: copy the weights into memory of their own, which `parts.release` can free, instead of mapping the file.

    Raises:
        CheckpointError: the file is incomplete or inconsistent; the message lists all of it.
    """
    content = file.content
    weights = file.weights(EXPECTED)
    plan = _plan(content, plans, dataset, configuration)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    config = config_from_shapes(shapes, norm_eps=plan.norm_eps, leaky_slope=plan.leaky_slope)
    model = _build(config, weights, owned=owned)
    preprocessing, labels = plan.preprocessing(), plan.labels()
    _check_agreement(config, plan, preprocessing, labels)
    axes, axes_note = _mirror_axes(content, mirror_axes)
    notes = (
        f"network: {config.variant}, {config.frames} frames of {config.patch_side}x{config.patch_side}, "
        f"{config.in_channels} channel(s), {config.queries} queries, {config.classes} classes",
        f"encoder: {config.depth} blocks of width {config.embed_dim}, {config.heads} heads, window {config.window}, "
        f"global blocks {', '.join(map(str, config.global_blocks))}",
        f"plan: configuration '{plan.name}', spacing {preprocessing.spacing} mm, "
        f"transpose {preprocessing.transpose_forward}",
        f"labels: {some([f'{label.value} {label.name}' for label in labels.classes], 100)} ({labels.decision})",
        axes_note,
    )
    return TrainedMaskSAM(model, preprocessing, labels, axes, file.path, file.sha256, notes)


def _plan(
    content: Mapping[str, Any],
    plans: str | Path | None,
    dataset: str | Path | None,
    configuration: str | None,
) -> Plan:
    arguments = content.get("init_args")
    carried = arguments if isinstance(arguments, Mapping) else {}
    plans_data = read_json(plans) if plans else carried.get("plans")
    dataset_data = read_json(dataset) if dataset else carried.get("dataset_json")
    if not isinstance(plans_data, Mapping) or not isinstance(dataset_data, Mapping):
        missing = "plans" if not isinstance(plans_data, Mapping) else "dataset.json"
        raise CheckpointError(
            f"the checkpoint carries no {missing}; it looks like a plain state dict: pass --plans nnUNetPlans.json "
            "and --dataset dataset.json"
        )
    own = carried.get("configuration")
    return Plan(plans_data, dataset_data, configuration or (own if isinstance(own, str) else DEFAULT_CONFIGURATION))


def _build(config: ModelConfig, weights: Mapping[str, Tensor], *, owned: bool = False) -> MaskSAM:
    """The network with these weights; everything that does not fit is listed in one error."""
    model = _empty(config)
    expected = model.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        aliases.setdefault(id(tensor), []).append(name)
    problems = [
        *listed("missing", expected.keys() - weights.keys()),
        *listed("unexpected", weights.keys() - expected.keys()),
        *listed(
            "wrong shape",
            (
                f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
                for name, tensor in expected.items()
                if name in weights and weights[name].shape != tensor.shape
            ),
        ),
    ]
    if not problems:
        weights = in_float32(weights, copy=owned)
        problems = listed("tied copies that differ", _differing_copies(aliases.values(), weights))
    if problems:
        raise CheckpointError(
            f"the weights do not fit a MaskSAM '{config.variant}' network: {'; '.join(problems)}; expected {EXPECTED}"
        )
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _empty(config: ModelConfig) -> MaskSAM:
    """The network without memory for its weights."""
    try:
        with torch.device("meta"):
            return MaskSAM(config)
    except (RuntimeError, ValueError, ArithmeticError) as error:  # sizes that each are possible, but not together
        raise CheckpointError(f"the weights do not describe a MaskSAM: {reason(error)}; expected {EXPECTED}") from error


def _differing_copies(groups: Iterable[list[str]], weights: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{group[0]} and {copy}"
        for group in groups
        for copy in group[1:]
        if weights[group[0]] is not weights[copy] and not torch.equal(weights[group[0]], weights[copy])
    ]


def _check_agreement(config: ModelConfig, plan: Plan, preprocessing: Preprocessing, labels: Labels) -> None:
    window = config.input_shape[1:]
    problems = []
    if plan.patch_size != window:
        problems.append(f"the plan's patch is {list(plan.patch_size)}, the weights are for {list(window)}")
    if len(preprocessing.channel_names) != config.in_channels:
        problems.append(
            f"dataset.json has {len(preprocessing.channel_names)} channels, the weights are for {config.in_channels}"
        )
    if len(labels.classes) != config.classes:
        problems.append(f"dataset.json has {len(labels.classes)} classes, the weights are for {config.classes}")
    problems += preprocessing_problems(preprocessing)
    if problems:
        raise CheckpointError(f"plan, dataset and weights do not belong together: {'; '.join(problems)}")


def _mirror_axes(content: Mapping[str, Any], chosen: tuple[int, ...] | None) -> tuple[tuple[int, ...], str]:
    key = "inference_allowed_mirroring_axes"
    if chosen is None and key not in content:
        return (), "mirroring: not recorded in a plain state dict, so none (set it with --mirror-axes)"
    axes = chosen if chosen is not None else content[key]
    axes = () if axes is None else axes
    if not isinstance(axes, tuple | list) or not all(type(a) is int and a in (0, 1, 2) for a in axes):
        raise CheckpointError(f"mirror axes are {quoted(axes)}; expected numbers out of 0, 1, 2")
    result = tuple(sorted(set(axes)))
    return result, f"mirroring: axes {result}" if result else "mirroring: none allowed"
