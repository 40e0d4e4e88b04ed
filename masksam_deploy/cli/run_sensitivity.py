"""The sensitivity command's work: measure every layer in int8, write the exclusion list, print the worst layers."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from masksam_deploy.base.atomic import check_writable
from masksam_deploy.base.errors import BundleError, OutputError
from masksam_deploy.base.memory import bounded_network
from masksam_deploy.base.optional import require_packages
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import printable, shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn
from masksam_deploy.io.cases import find_scans

# What quantises imports onnx, which is checked first.
if TYPE_CHECKING:
    from masksam_deploy.engines.calibration import CalibrationWindows
    from masksam_deploy.engines.exclusions import Exclusions
    from masksam_deploy.engines.quantisation import Calibrator
    from masksam_deploy.engines.sensitivity import Sensitivity

MOST_ROWS = 20
"""Of the table of layers."""


@dataclass(frozen=True)
class SensitivityRequest:
    """The command's parameters, see `sensitivity --help`."""

    bundle: Path
    calibration: tuple[Path, ...]
    calibrator: Calibrator
    max_loss: float
    output: Path | None
    threads: int | None
    as_json: bool


def run_sensitivity(request: SensitivityRequest) -> None:
    """Measure, write the exclusion list, and print the worst layers.

    Raises:
        MissingDependencyError: what quantises graphs is not installed.
        BundleError, ScanError, OutputError: an input or the output is refused.
    """
    require_packages("onnx", "onnxruntime", extra="cpu,engines", purpose="quantising graphs")
    from masksam_deploy.engines.calibration import calibration_windows
    from masksam_deploy.engines.exclusions import default_path, write_exclusions
    from masksam_deploy.engines.sensitivity import measure_sensitivity

    bundle = Bundle.load(request.bundle)
    target = request.output or default_path(bundle)
    if request.output:
        _check_output(request.output, request.bundle)
    windows = calibration_windows(bundle, find_scans(request.calibration, bundle.channels, tell=warn))
    with bounded_network(), progress_bar("calibrating") as progress:
        found = measure_sensitivity(
            bundle,
            windows,
            calibrator=request.calibrator,
            allowed=request.max_loss,
            threads=request.threads,
            progress=progress,
        )
    write_exclusions(_exclusions(bundle, windows, found, request), target)
    if request.as_json:
        click.echo(json.dumps({"exclusions": str(target), **found.to_dict()}, indent=2))
    else:
        _print_result(found, target)


def _exclusions(
    bundle: Bundle, windows: CalibrationWindows, found: Sensitivity, request: SensitivityRequest
) -> Exclusions:
    from masksam_deploy.engines.exclusions import Exclusions

    return Exclusions(
        bundle_sha256=bundle.sha256,
        excluded={name: list(nodes) for name, nodes in found.excluded.items()},
        ranking=found.to_dict()["ranking"],
        settings={
            "calibrator": request.calibrator,
            "allowed_dice_loss": request.max_loss,
            "dice_loss": found.dice_loss,
            "dice_loss_of_all": found.dice_loss_of_all,
            "calibration": windows.scans,
            "calibration_sha256": windows.sha256,
        },
    )


def _check_output(path: Path, bundle: Path) -> None:
    """Refuse, before the work, a list that cannot be written, or that would overwrite a scan or the bundle."""
    if path.suffix.lower() != ".json":
        raise OutputError(f"{shown(path)}: found the file type '{path.suffix}', expected .json; rename it")
    if resolved(bundle, BundleError) in resolved(path, OutputError).parents:
        raise OutputError(
            f"{shown(path)}: found an output that lies inside the bundle, which must not change; write elsewhere"
        )
    check_writable(path)


def _print_result(found: Sensitivity, target: Path) -> None:
    from masksam_deploy.base.tables import figures, open_console, table, words

    open_console(sys.stdout).print(
        table(
            f"most harmful of {len(found.ranking)} layers",
            (*words("graph", "layer"), *figures("score error", "Dice lost")),
            [
                (loss.graph, loss.node, f"{loss.score_error:.4f}", f"{loss.dice_loss:.4f}")
                for loss in found.ranking[:MOST_ROWS]
            ],
        )
    )
    left_out = sum(len(nodes) for nodes in found.excluded.values())
    click.echo(
        f"Dice lost on the judged windows: {found.dice_loss_of_all:.4f} with all layers in int8, "
        f"{found.dice_loss:.4f} without the {left_out} excluded"
    )
    click.echo(f"wrote {printable(target)}; build-engine --int8 uses the list in the bundle, others with --exclude")
