"""`masksam-deploy compare`: two bundles, or two ways to run one bundle, on the same scans."""

from __future__ import annotations

from typing import Any

import click

from masksam_deploy.cli.help import Command, OptionGroup
from masksam_deploy.cli.values import ACCUMULATOR, DEVICE, FILE, PRECISION, TARGET, THREADS, available_or_size, share

sides = OptionGroup("How A and B are run")
hardware = OptionGroup("Both sides")
results = OptionGroup("Results and demands")

EXAMPLES = {
    "Compare two bundles": "masksam-deploy compare old.masksam new.masksam scan1.nii.gz scan2.nii.gz",
    "Compare a bundle with its int8 engine, and demand a Dice of 0.99": "masksam-deploy compare lv.masksam lv.masksam "
    "scan.nii.gz \\\n    --precision-b int8 --min-dice 0.99",
}


@click.command(cls=Command, short_help="Compare the label maps of two bundles on the same scans.", examples=EXAMPLES)
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.argument("scans", metavar="SCAN...", nargs=-1, required=True, type=FILE)
@sides("--device-a", type=DEVICE, default="cpu", show_default=True, help="Device of A.")
@sides("--device-b", type=DEVICE, default="cpu", show_default=True, help="Device of B.")
@sides("--backend-a", type=TARGET, default="onnxruntime", show_default=True, help="Runtime of A.")
@sides("--backend-b", type=TARGET, default="onnxruntime", show_default=True, help="Runtime of B.")
@sides(
    "--precision-a",
    type=PRECISION,
    default="fp32",
    show_default=True,
    help="Precision of A. Only fp32 in ONNX Runtime needs no engine.",
)
@sides(
    "--precision-b",
    type=PRECISION,
    default="fp32",
    show_default=True,
    help="Precision of B. Only fp32 in ONNX Runtime needs no engine.",
)
@sides(
    "--accumulator-a",
    type=ACCUMULATOR,
    default="float32",
    show_default=True,
    help="Number type in which A sums scores.",
)
@sides(
    "--accumulator-b",
    type=ACCUMULATOR,
    default="float32",
    show_default=True,
    help="Number type in which B sums scores.",
)
@hardware("--tta/--no-tta", default=True, help="Average over mirrored windows where a bundle allows it. Default: on.")
@hardware("--threads", type=THREADS, metavar="N", help="CPU threads for the network. Default: all cores.")
@hardware(
    "--max-ram",
    callback=available_or_size,
    metavar="SIZE",
    help="Refuse scans that need more memory than this, e.g. 8G. Default: the memory that is free now.",
)
@results("--csv", type=FILE, help="Table to write (.csv): one row per scan and class.")
@results("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
@results(
    "--min-agreement",
    type=float,
    callback=share,
    metavar="SHARE",
    help="Exit with 3 if in any scan a smaller share of the voxels has the same label (0 to 1).",
)
@results(
    "--min-dice",
    type=float,
    callback=share,
    metavar="DICE",
    help="Exit with 3 if the Dice of any class in any scan is smaller (0 to 1).",
)
def compare(**options: Any) -> None:
    """Segment every SCAN with the bundles A and B, and compare the label maps.

    A and B may be the same bundle, run in two ways. A SCAN is a file, or a folder with one DICOM series. A class that
    is empty on both sides is not counted; a class that is empty on one side has a Dice of 0.
    """
    from masksam_deploy.cli.run_compare import CompareRequest, run_compare

    run_compare(CompareRequest(**options))
