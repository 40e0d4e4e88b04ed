"""MaskSAM as a family of networks: its options, its mark, and how a checkpoint is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from masksam_export.families.base import Family, LoadRequest, Shapes, Trained
from masksam_export.families.nnunet_options import nnunet_options

if TYPE_CHECKING:
    from masksam_export.families.masksam.adapter_nodes import Adapters

_MARKS = ("sam_model.prompt_encoder.temporal_embedding", "image_decoder_seg_layers.", "first_conv.0.convs.")
"""Beginnings of names that only MaskSAM has together; each of them is enough beside SAM's own weights."""


class MaskSAMFamily:
    """See `Family`."""

    name = "masksam"
    title = "MaskSAM, trained by the trainers for ACDC, AMOS and Synapse or by masksam-deploy train"

    def options(self) -> Sequence[click.Option]:
        """See `Family.options`."""
        return [
            *nnunet_options(),
            click.Option(
                ["--adapters"],
                type=click.Choice(["planes", "stacked", "volume", "node"]),
                default="planes",
                show_default=True,
                help="Form of the depth-convolution adapters: one of three formulations in standard operators, or a "
                "single node with such a body, which a TensorRT plugin may replace.",
            ),
            click.Option(
                ["--kernels"],
                type=click.Path(path_type=Path),
                help="Kernel pack to put into the bundle, from 'masksam-kernels build'. Needs --adapters node.",
            ),
        ]

    def recognises(self, shapes: Shapes) -> bool:
        """See `Family.recognises`."""
        has_sam = any(name.startswith("sam_model.") for name in shapes)
        return has_sam and any(name.startswith(_MARKS) for name in shapes)

    def load(self, request: LoadRequest) -> Trained:
        """See `Family.load`."""
        from masksam_export.families.masksam.checkpoint import read_masksam
        from masksam_export.families.masksam.exportable import exportable

        options = request.options
        trained = read_masksam(
            request.file,
            plans=cast("Path | None", options["plans"]),
            dataset=cast("Path | None", options["dataset"]),
            configuration=cast("str | None", options["configuration"]),
            mirror_axes=cast("tuple[int, ...] | None", options["mirror_axes"]),
            owned=request.owned,
        )
        return exportable(
            trained,
            adapters=cast("Adapters", options["adapters"]),
            kernels=cast("Path | None", options["kernels"]),
        )


FAMILY: Family = MaskSAMFamily()
