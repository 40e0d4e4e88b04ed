"""`masksam-deploy evaluate`: predicted label maps against references."""

from __future__ import annotations

from typing import Any

import click

from masksam_deploy.cli.help import Command, OptionGroup
from masksam_deploy.cli.values import FILE, share

inputs = OptionGroup("Input")
results = OptionGroup("Results and demands")

EXAMPLES = {
    "Evaluate a folder of predictions": "masksam-deploy evaluate out/ labelsTs/ --labels dataset.json --csv scores.csv",
    "Draw the worst cases over their scans": "masksam-deploy evaluate out/ labelsTs/ \\\n"
    "    --plot scores.png --scans imagesTs/",
}


@click.command(cls=Command, short_help="Compare label maps with references.", examples=EXAMPLES)
@click.argument("predictions", type=FILE)
@click.argument("references", type=FILE)
@inputs("--labels", type=FILE, help="Names of the classes: an nnU-Net dataset.json, or a bundle directory.")
@inputs("--allow-missing", is_flag=True, help="Leave out files without a counterpart. Default: such files are refused.")
@inputs("--scans", type=FILE, help="Folder of scans to draw the worst cases on; for one case, the scan.")
@results("--csv", type=FILE, help="Table to write (.csv): one row per case and class.")
@results("--report", type=FILE, help="Report to write (.json): all figures with their definitions.")
@results("--plot", type=FILE, help="Picture to draw (.png): box plots and the worst cases.")
@results("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables.")
@results(
    "--min-dice",
    type=float,
    callback=share,
    metavar="DICE",
    help="Exit with 3 if the mean Dice of any class is smaller (0 to 1).",
)
def evaluate(**options: Any) -> None:
    """Compare the label maps in PREDICTIONS with those of the same name in REFERENCES.

    Both are folders, or both are files. For every case and class: Dice, IoU, 95 % Hausdorff distance, average
    symmetric surface distance, and volumes. A class that is empty on both sides of a case is not counted there. A
    class that is empty on one side counts with a Dice of 0 and has no distances.
    """
    from masksam_deploy.cli.run_evaluate import EvaluateRequest, run_evaluate

    run_evaluate(EvaluateRequest(**options))
