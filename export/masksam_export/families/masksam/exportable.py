"""A trained MaskSAM as the exporter takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from masksam_deploy.bundle.nnunet import recipe_of
from masksam_deploy.bundle.rules import KERNELS_DIRECTORY
from masksam_export.families.base import Trained
from masksam_export.families.example_windows import example_windows
from masksam_export.families.masksam.adapter_nodes import DEFAULT_FORMULATION, Adapters, adapter_rewrites
from masksam_export.families.masksam.bundled_kernels import copy_pack, fitting_pack
from masksam_export.families.masksam.checkpoint import TrainedMaskSAM
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.graphs import graph_parts
from masksam_export.families.masksam.references import reference_outputs


def exportable(
    trained: TrainedMaskSAM, *, adapters: Adapters = DEFAULT_FORMULATION, kernels: Path | None = None
) -> Trained:
    """A trained MaskSAM as the exporter takes it.

    Args:
        trained: from `load_checkpoint`.
        adapters: how the depth-convolution adapters appear: in standard operators, in one of three formulations, or as
            one node each with a body; see `adapter_nodes`.
        kernels: a kernel pack for the bundle to carry, for engines that run the adapters' nodes as kernels.

    Raises:
        ExportError: the kernels do not fit the network, or the adapters are no nodes.
    """
    files: dict[str, Any] = {}
    if kernels is not None:
        files["extra_files"] = _writing(kernels, trained.config, adapters)
    return Trained(
        family="masksam",
        source=trained.source,
        sha256=trained.sha256,
        network=_plain(asdict(trained.config)),
        recipe=recipe_of(trained.preprocessing, mirror_axes=trained.mirror_axes),
        labels=trained.labels,
        module=trained.model,
        parts=partial(graph_parts, trained.model),
        reference=partial(reference_outputs, trained.model),
        examples=partial(example_windows, trained.config.input_shape),
        rewrites=adapter_rewrites(adapters),
        notes=trained.notes,
        **files,
    )


def _writing(kernels: Path, config: ModelConfig, adapters: Adapters) -> Callable[[Path], None]:
    """Writes a pack, which is read and checked now, into a bundle's folder."""
    pack = fitting_pack(kernels, config, adapters)

    def write(staging: Path) -> None:
        copy_pack(pack, staging / KERNELS_DIRECTORY)

    return write


def _plain(value: Any) -> Any:
    """Tuples to lists, all the way down, as JSON will have them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
