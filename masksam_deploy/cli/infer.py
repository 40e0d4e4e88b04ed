"""`masksam-deploy infer`: label maps of one scan or of many."""

from __future__ import annotations

from typing import Any

import click

from masksam_deploy.cli.help import Command, OptionGroup
from masksam_deploy.cli.values import (
    ACCUMULATOR,
    BACKEND,
    DEVICE,
    FILE,
    LABEL_SUFFIX,
    PRECISION,
    PROFILE,
    SCORES_ON,
    THREADS,
    available_or_size,
    optional_size,
    window_step,
)

files = OptionGroup("Input and output")
many = OptionGroup("Many scans")
inference = OptionGroup("Inference")
hardware = OptionGroup("Runtime and hardware")

EXAMPLES = {
    "Segment one scan": "masksam-deploy infer scan.nii.gz -b lv.masksam -o seg.nii.gz",
    "Segment a folder of scans, and go on after an interruption": "masksam-deploy infer scans/ -b lv.masksam -o out/\n"
    "masksam-deploy infer scans/ -b lv.masksam -o out/ --resume",
    "Run faster, and draw a picture to check": "masksam-deploy infer scan.nii.gz -b lv.masksam -o seg.nii.gz \\\n"
    "    --profile fast --overlay seg.png",
}


@click.command(cls=Command, short_help="Segment one scan or many with a bundle.", examples=EXAMPLES)
@click.argument("scans", metavar="SCAN...", nargs=-1, required=True, type=FILE)
@files("-b", "--bundle", required=True, type=FILE, help="Bundle directory.")
@files(
    "-o",
    "--output",
    required=True,
    type=FILE,
    help="Label map to write (.nii.gz, .nii, .nrrd or .mha). For many scans: a folder.",
)
@files(
    "-c",
    "--channel",
    "channels",
    multiple=True,
    type=FILE,
    help="Further input channel of the scan, in the model's order. Repeat for more.",
)
@files("--overlay", type=FILE, help="Contact sheet to draw (.png): slices with the labels' contours.")
@files("--report", type=FILE, help="Report to write (.json): volumes, settings, timings and hashes.")
@files("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a summary.")
@many("--overlays", is_flag=True, help="Draw a contact sheet of every scan.")
@many("--suffix", type=LABEL_SUFFIX, help="File type of the label maps. Default: .nii.gz.")
@many("--resume", is_flag=True, help="Skip scans that an earlier run into the output folder has segmented.")
@many("--force", is_flag=True, help="Segment all scans again and replace what is in the output folder.")
@inference(
    "--profile",
    type=PROFILE,
    help="Choose step, mirroring and precision together, and print the Dice that this cost when it was measured. "
    "Options you type override the profile.",
)
@inference(
    "--precision",
    type=PRECISION,
    help="Precision. fp32 runs the bundle's own graphs; the others need an engine that was built in this precision. "
    "Default: the fastest that is valid here.",
)
@inference(
    "--tta/--no-tta",
    default=None,
    help="Average over mirrored windows (test-time augmentation) where the bundle allows it. Default: on, or as the "
    "profile says.",
)
@inference(
    "--step",
    type=float,
    callback=window_step,
    metavar="SHARE",
    help="Distance between windows as a share of the patch size. Default: as the profile or the bundle says; 0.5 in "
    "most bundles.",
)
@inference(
    "--accumulator",
    type=ACCUMULATOR,
    default="float32",
    show_default=True,
    help="Number type in which class scores are summed. float16 repeats the arithmetic of the training code, which "
    "loses accuracy near the scan's corners.",
)
@hardware("--device", type=DEVICE, help="Device. Default: CPU for ONNX Runtime, GPU for TensorRT.")
@hardware(
    "--backend",
    type=BACKEND,
    default="auto",
    show_default=True,
    help="Runtime. auto chooses the fastest engine in the bundle that is valid on this machine.",
)
@hardware("--threads", type=THREADS, metavar="N", help="CPU threads for the network. Default: all cores.")
@hardware(
    "--max-ram",
    callback=available_or_size,
    metavar="SIZE",
    help="Refuse scans that need more memory than this, e.g. 8G. Default: the memory that is free now.",
)
@hardware(
    "--max-vram",
    callback=optional_size,
    metavar="SIZE",
    help="GPU memory that a TensorRT engine may use, e.g. 4G. Fewer windows run at once, or the engine is refused.",
)
@hardware(
    "--scores-on",
    type=SCORES_ON,
    default="cpu",
    show_default=True,
    help="Where class scores are summed, resampled and turned into labels. gpu needs a TensorRT engine and CuPy.",
)
@hardware(
    "--run-timeout",
    type=click.IntRange(1, 10_000_000),
    metavar="SECONDS",
    help="ONNX Runtime: stop when one graph takes longer than this for one window. Default: 3600.",
)
def infer(**options: Any) -> None:
    """Segment SCAN with a bundle and write its label map.

    SCAN is a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series. The label map has exactly the scan's
    geometry. The outputs of a scan are written together, or none of them is.

    To segment many scans, give several SCANs or a folder of scans, and a folder as OUTPUT. The scans in a folder are
    files (CASE_0000.nii.gz, CASE_0001.nii.gz ... for a model with several channels) or folders with one DICOM series
    each. OUTPUT gets CASE.nii.gz for every scan and report.json, which is kept up to date. When a scan fails, the
    others are still segmented.

    Exit codes: 0 all scans were segmented; 2 the call was refused, or nothing could be done; 4 some of many scans
    failed, the others were segmented.
    """
    from masksam_deploy.cli.run_infer import InferRequest, run_infer

    run_infer(InferRequest(**options))
