"""`masksam-deploy export`. Imports torch only when it runs, so that `--help` works without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from masksam_export.families.masksam.adapter_nodes import Adapters
    from masksam_export.passes.convolutions import Convolutions


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Bundle directory [NAME.masksam].")
@click.option("--plans", type=click.Path(path_type=Path), help="nnU-Net plans, for a plain state dict.")
@click.option("--dataset", type=click.Path(path_type=Path), help="dataset.json, for a plain state dict.")
@click.option("--configuration", help="Configuration of the plans [the checkpoint's own, else 3d_fullres].")
@click.option("--mirror-axes", help="Allowed mirror axes, e.g. 0,1,2 or none [the checkpoint's own].")
@click.option(
    "--adapters",
    type=click.Choice(["planes", "stacked", "volume", "node"]),
    default="planes",
    show_default=True,
    help="The depth-convolution adapters in the graphs: standard operators in one of three formulations, or one node "
    "each with a body in standard operators, which a TensorRT plugin may replace.",
)
@click.option(
    "--convolutions",
    type=click.Choice(["saving", "direct"]),
    default="saving",
    show_default=True,
    help="The 3D convolutions in the graphs: with fewer multiplications for the same function (for CPUs), or as the "
    "network has them (for GPUs, whose libraries save in their own ways).",
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Small scan, or folder of scans, that travels with the bundle for judging engines; repeat for more. Voxels "
    "and geometry are kept, nothing else of the patient.",
)
@click.option("--references", type=click.Path(path_type=Path), help="Label map of the validation scan, or folder.")
@click.option(
    "--kernels",
    type=click.Path(path_type=Path),
    help="Kernel pack for the bundle to carry, from masksam-kernels build; with --adapters node.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary for machines instead of people.")
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

    CHECKPOINT is an nnU-Net checkpoint_final.pth, or a plain state dict with --plans and --dataset. Nothing in
    it is executed. The graphs are compared with the network; a bundle that disagrees is not written.
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
