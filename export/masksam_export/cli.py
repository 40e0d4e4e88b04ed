"""`masksam-deploy export`. Imports torch only when it runs, so that `--help` works without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from masksam_deploy.cli.help import Command, OptionGroup

if TYPE_CHECKING:
    from masksam_export.families.masksam.adapter_nodes import Adapters
    from masksam_export.passes.convolutions import Convolutions


source = OptionGroup("Checkpoint")
graphs = OptionGroup("Graphs")
extras = OptionGroup("Files in the bundle")
output_options = OptionGroup("Output")

EXAMPLES = {
    "Export a checkpoint of nnU-Net's trainers": "masksam-deploy export checkpoint_final.pth -o lv.masksam",
    "Export a plain state dict, with scans for judging engines": "masksam-deploy export weights.pth -o lv.masksam \\\n"
    "    --plans plans.json --dataset dataset.json --validation imagesVal/",
}


@click.command(
    cls=Command, short_help="Turn a MaskSAM checkpoint into a verified bundle of ONNX graphs.", examples=EXAMPLES
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@output_options(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Bundle directory to write. Default: NAME.masksam, after the checkpoint.",
)
@source("--plans", type=click.Path(path_type=Path), help="nnU-Net plans, for a plain state dict.")
@source("--dataset", type=click.Path(path_type=Path), help="dataset.json, for a plain state dict.")
@source(
    "--configuration",
    metavar="NAME",
    help="Configuration in the plans. Default: the checkpoint's own, or else 3d_fullres.",
)
@source(
    "--mirror-axes",
    metavar="AXES",
    help="Axes that windows may be mirrored along, e.g. 0,1,2 or none. Default: the checkpoint's own.",
)
@graphs(
    "--adapters",
    type=click.Choice(["planes", "stacked", "volume", "node"]),
    default="planes",
    show_default=True,
    help="Form of the depth-convolution adapters: one of three formulations in standard operators, or a single node "
    "with such a body, which a TensorRT plugin may replace.",
)
@graphs(
    "--convolutions",
    type=click.Choice(["saving", "direct"]),
    default="saving",
    show_default=True,
    help="Form of the 3D convolutions: saving computes the same function with fewer multiplications (for CPUs), direct "
    "keeps them as in the network (for GPUs, whose libraries optimise them).",
)
@extras(
    "--validation",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Small scan, or folder of scans, to put into the bundle for judging engines. Repeat for more. Only voxels and "
    "geometry are copied, nothing else about the patient.",
)
@extras(
    "--references",
    type=click.Path(path_type=Path),
    help="Label map of the one validation scan, or folder of NAME.nii.gz.",
)
@extras(
    "--kernels",
    type=click.Path(path_type=Path),
    help="Kernel pack to put into the bundle, from 'masksam-kernels build'. Needs --adapters node.",
)
@output_options("--force", is_flag=True, help="Replace an existing bundle.")
@output_options("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def export(
    checkpoint: Path,
    output: Path | None,
    plans: Path | None,
    dataset: Path | None,
    configuration: str | None,
    mirror_axes: str | None,
    adapters: str,
    convolutions: str,
    validation: tuple[Path, ...],
    references: Path | None,
    kernels: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a MaskSAM CHECKPOINT into a verified bundle of three ONNX graphs.

    CHECKPOINT is an nnU-Net checkpoint_final.pth, or a plain state dict with --plans and --dataset. Nothing in the
    file is executed. The graphs are compared with the network. If they disagree, no bundle is written.
    """
    from masksam_deploy.base.optional import require_packages

    require_packages("torch", "onnx", "onnxscript", "onnxruntime", extra="cpu,export", purpose="export")
    from masksam_export.run_export import run_export

    run_export(
        checkpoint,
        output or Path(checkpoint.stem + ".masksam"),
        plans=plans,
        dataset=dataset,
        configuration=configuration,
        mirror_axes=parse_axes(mirror_axes),
        adapters=cast("Adapters", adapters),
        convolutions=cast("Convolutions", convolutions),
        validation=validation,
        references=references,
        kernels=kernels,
        force=force,
        as_json=as_json,
    )


def parse_axes(text: str | None) -> tuple[int, ...] | None:
    """'0,1,2' -> (0, 1, 2); 'none' -> (); nothing -> None."""
    if text is None:
        return None
    if text.strip().lower() in ("none", ""):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is not like 0,1,2 or none", param_hint="--mirror-axes") from error
