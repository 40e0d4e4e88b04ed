"""`masksam-deploy infer`: one scan in, one label map out."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from masksam_deploy.cli.values import FILE, optional_size, size_in_bytes

if TYPE_CHECKING:
    from masksam_deploy.backends.base import Device
    from masksam_deploy.engines.run import Backend
    from masksam_deploy.engines.spec import Precision
    from masksam_deploy.sliding_window import Accumulator


def checked_step(_: click.Context, __: click.Parameter, value: float) -> float:
    """A distance of windows that `Segmenter` takes."""
    from masksam_deploy.segmenter import SMALLEST_STEP

    if not isfinite(value) or not SMALLEST_STEP <= value <= 1:
        raise click.BadParameter(f"{value} is not in the range from {SMALLEST_STEP} to 1")
    return value


@click.command(short_help="Segment a scan with a bundle.")
@click.argument("scan", type=FILE)
@click.option("-b", "--bundle", required=True, type=FILE, help="Bundle directory.")
@click.option("-o", "--output", required=True, type=FILE, help="Label map: .nii.gz .nii .nrrd .mha")
@click.option(
    "-c",
    "--channel",
    "channels",
    multiple=True,
    type=FILE,
    help="Further input channel, in the model's order; repeat for more.",
)
@click.option("--overlay", type=FILE, help="Draw a contact sheet (.png).")
@click.option("--report", type=FILE, help="Write volumes, timings and hashes (.json).")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="Runtime; auto takes the fastest engine in the bundle that is valid here.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="Only an engine that was built so; fp32 are the bundle's own graphs [the fastest there is].",
)
@click.option("--tta/--no-tta", default=True, help="Average over mirrored windows where the bundle allows it [on].")
@click.option(
    "--accumulator",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="float16 repeats the training code's arithmetic, which loses accuracy near the scan's corners.",
)
@click.option(
    "--step",
    type=float,
    callback=checked_step,
    default=0.5,
    show_default=True,
    help="Distance of windows as a share of the patch.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads for the network [all cores].")
@click.option("--max-ram", callback=size_in_bytes, help="Refuse scans that need more, e.g. 8G [what is free now].")
@click.option(
    "--max-vram",
    callback=optional_size,
    help="GPU memory that an engine of TensorRT may take, e.g. 4G: fewer windows run at once, or it is refused.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of a summary.")
def infer(
    scan: Path,
    bundle: Path,
    output: Path,
    channels: tuple[Path, ...],
    overlay: Path | None,
    report: Path | None,
    device: Device,
    backend: Backend,
    precision: Precision | None,
    tta: bool,
    accumulator: Accumulator,
    step: float,
    threads: int | None,
    max_ram: int | None,
    max_vram: int | None,
    as_json: bool,
) -> None:
    """Segment SCAN, a NIfTI, NRRD or MetaImage file or a folder with one DICOM series.

    The label map gets the scan's exact geometry. Outputs appear together, complete, or not at all.
    """
    from masksam_deploy.cli.infer_scan import Outputs, infer_scan

    infer_scan(
        (scan, *channels),
        bundle,
        Outputs(output, overlay, report),
        device=device,
        backend=backend,
        precision=precision,
        tta=tta,
        accumulator=accumulator,
        step=step,
        threads=threads,
        max_ram=max_ram,
        max_vram=max_vram,
        as_json=as_json,
    )
