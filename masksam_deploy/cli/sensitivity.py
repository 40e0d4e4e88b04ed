"""`masksam-deploy sensitivity`: which layers lose accuracy in int8."""

from __future__ import annotations

from typing import Any

import click

from masksam_deploy.cli.help import Command
from masksam_deploy.cli.values import CALIBRATOR, FILE, THREADS, share

EXAMPLES = {
    "Write the list that build-engine --int8 uses": "masksam-deploy sensitivity lv.masksam --calibration scans/",
}


@click.command(cls=Command, short_help="Rank layers by the accuracy they lose in int8.", examples=EXAMPLES)
@click.argument("bundle", type=FILE)
@click.option(
    "--calibration",
    type=FILE,
    multiple=True,
    required=True,
    help="Scan, or folder of scans, on which ranges and losses are measured. Repeat for more.",
)
@click.option(
    "--calibrator",
    type=CALIBRATOR,
    default="percentile",
    show_default=True,
    help="How ranges are chosen from the measured values.",
)
@click.option(
    "--max-loss",
    type=float,
    callback=share,
    default=0.005,
    show_default=True,
    metavar="DICE",
    help="Dice that all layers in int8 together may lose.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Exclusion list to write (.json). Default: a file in the bundle, which build-engine reads.",
)
@click.option("--threads", type=THREADS, metavar="N", help="CPU threads for the network. Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of a table.")
def sensitivity(**options: Any) -> None:
    """Quantise every layer of BUNDLE alone, and rank the layers by the error of the class scores and the loss of Dice.

    The worst layers are written to an exclusion list, as many as must stay out of int8 to keep the loss below
    --max-loss. 'build-engine --int8' uses this list.
    """
    from masksam_deploy.cli.run_sensitivity import SensitivityRequest, run_sensitivity

    run_sensitivity(SensitivityRequest(**options))
