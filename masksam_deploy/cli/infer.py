"""`masksam-deploy infer`: a scan in, a label map out; or a folder of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from masksam_deploy.cli.values import FILE, optional_size, size_in_bytes

if TYPE_CHECKING:
    from masksam_deploy.engines.choose import Backend
    from masksam_deploy.engines.profiles import ProfileName
    from masksam_deploy.runtimes.base import Device
    from masksam_deploy.runtimes.spec import Precision
    from masksam_deploy.scan_path.place import ScoresOn
    from masksam_deploy.scan_path.windows import Accumulator


def checked_step(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """A distance of windows that `Segmenter` takes; None if none was typed."""
    from masksam_deploy.scan_path.segmenter import SMALLEST_STEP

    if value is not None and not (isfinite(value) and SMALLEST_STEP <= value <= 1):
        raise click.BadParameter(f"{value} is not in the range from {SMALLEST_STEP} to 1")
    return value


@click.command(short_help="Segment a scan, or many, with a bundle.")
@click.argument("scans", metavar="SCAN...", nargs=-1, required=True, type=FILE)
@click.option("-b", "--bundle", required=True, type=FILE, help="Bundle directory.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=FILE,
    help="Label map (.nii.gz .nii .nrrd .mha); or, for many scans, a folder.",
)
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
@click.option("--overlays", is_flag=True, help="Many scans: draw a contact sheet of each.")
@click.option(
    "--suffix",
    type=click.Choice([".nii.gz", ".nii", ".nrrd", ".mha"]),
    help="Many scans: type of the label maps [.nii.gz].",
)
@click.option("--resume", is_flag=True, help="Many scans: skip those that an earlier run into the folder did.")
@click.option("--force", is_flag=True, help="Many scans: do all again, and replace what is in the folder.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where it must run [anywhere for engines of TensorRT, the CPU for ONNX Runtime].",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "rtx"]),
    default="auto",
    show_default=True,
    help="Runtime; auto takes the fastest engine in the bundle that is valid here.",
)
@click.option(
    "--profile",
    type=click.Choice(["fast", "balanced", "accurate"]),
    help="Step, mirroring and precision in one; prints what that was measured to cost. What is typed besides it wins.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="Only an engine that was built so; fp32 are the bundle's own graphs [the fastest there is].",
)
@click.option(
    "--tta/--no-tta",
    default=None,
    help="Average over mirrored windows where the bundle allows it [on, or the profile's].",
)
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
    help="Distance of windows as a share of the patch [0.5, or the profile's].",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads for the network [all cores].")
@click.option("--max-ram", callback=size_in_bytes, help="Refuse scans that need more, e.g. 8G [what is free now].")
@click.option(
    "--max-vram",
    callback=optional_size,
    help="GPU memory that an engine of TensorRT may take, e.g. 4G: fewer windows run at once, or it is refused.",
)
@click.option(
    "--scores-on",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where class scores are summed, resampled and decided; gpu needs an engine of TensorRT and CuPy.",
)
@click.option(
    "--run-timeout",
    type=click.IntRange(1, 10_000_000),
    metavar="SECONDS",
    help="Give up when one part of the network takes longer for one window, in ONNX Runtime [3600].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of a summary.")
def infer(
    scans: tuple[Path, ...],
    bundle: Path,
    output: Path,
    channels: tuple[Path, ...],
    overlay: Path | None,
    report: Path | None,
    overlays: bool,
    suffix: str | None,
    resume: bool,
    force: bool,
    device: Device | None,
    backend: Backend,
    profile: ProfileName | None,
    precision: Precision | None,
    tta: bool | None,
    accumulator: Accumulator,
    step: float | None,
    threads: int | None,
    max_ram: int | None,
    max_vram: int | None,
    scores_on: ScoresOn,
    run_timeout: int | None,
    as_json: bool,
) -> None:
    """Segment SCAN, a NIfTI, NRRD or MetaImage file or a folder with one DICOM series.

    The label map gets the scan's exact geometry. Outputs appear together, complete, or not at all.

    Many scans, given as several SCANs or as a folder of files (CASE_0000.nii.gz, CASE_0001.nii.gz ... where the model
    has several channels) or of DICOM folders, need a folder as output, which gets CASE.nii.gz of each and report.json,
    written after every scan. One that fails does not stop the others.

    Exit codes: 0 all done; 2 refused, or nothing can be done; 4 some of many scans failed, the others are done.
    """
    from masksam_deploy.cli.open_segmenter import Running
    from masksam_deploy.engines.profiles import choose

    if device == "cpu" and backend in ("tensorrt", "rtx"):
        raise click.UsageError(f"--backend {backend} runs on a GPU, --device cpu does not: give one of them")
    chosen = choose(profile, step=step, tta=tta, precision=precision)
    how = Running(chosen, device, backend, accumulator, threads, max_ram, max_vram, scores_on, run_timeout)
    one = {"--channel": bool(channels), "--overlay": overlay is not None, "--report": report is not None}
    many = {"--overlays": overlays, "--suffix": suffix is not None, "--resume": resume, "--force": force}
    if _is_one(scans, output):
        _refuse(many, "is for many scans, with a folder as output")
        from masksam_deploy.cli.infer_scan import infer_scan
        from masksam_deploy.outputs.one_scan import Outputs

        infer_scan((*scans, *channels), bundle, Outputs(output, overlay, report), how, as_json=as_json)
        return
    _refuse(one, _INSTEAD)
    if resume and force:
        raise click.UsageError("--resume skips what is done, --force does it again: give one of them")
    from masksam_deploy.cli.infer_folder import Wanted, infer_folder

    infer_folder(scans, bundle, Wanted(output, suffix or ".nii.gz", overlays, resume, force), how, as_json=as_json)


_INSTEAD = {
    "--channel": "belongs to one scan and a label file; of many, name the channels' files CASE_0000, CASE_0001 ...",
    "--overlay": "belongs to one scan and a label file; --overlays draws one of each",
    "--report": "belongs to one scan and a label file; of many, OUTPUT/report.json is always written",
}


def _is_one(scans: tuple[Path, ...], output: Path) -> bool:
    """Whether one scan and one label file are meant.

    Raises:
        OutputError: several scans and a label file are given, or one and neither a label file nor a folder.
    """
    from masksam_deploy.base.errors import OutputError
    from masksam_deploy.base.text import shown
    from masksam_deploy.io.write_labels import LABEL_SUFFIXES

    names_a_file = output.name.lower().endswith((*LABEL_SUFFIXES, ".mhd", ".nhdr")) and not output.is_dir()
    if names_a_file and len(scans) > 1:
        raise OutputError(
            f"{shown(output)}: found the name of one label map for {len(scans)} scans, expected a folder; give one "
            "(further channels of one scan go with --channel)"
        )
    if len(scans) > 1 or output.is_dir():
        return False
    if not names_a_file and not output.suffix and scans[0].is_file():
        # A folder is made for a folder of scans; for one file, a name without a type is more likely a slip.
        raise OutputError(
            f"{shown(output)}: found a name without a type, expected one of {', '.join(LABEL_SUFFIXES)}; add it, or "
            "make that folder first"
        )
    return names_a_file or scans[0].is_file()


def _refuse(given: Mapping[str, bool], why: str | Mapping[str, str]) -> None:
    """Options that belong to the other form."""
    for name, is_given in given.items():
        if is_given:
            raise click.UsageError(f"{name} {why if isinstance(why, str) else why[name]}")
