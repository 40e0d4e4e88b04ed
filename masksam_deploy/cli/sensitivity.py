"""`masksam-deploy sensitivity`: which layers suffer from int8."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import click

from masksam_deploy.base.text import printable
from masksam_deploy.cli.values import FILE, share

SHOWN = 20


@click.command(short_help="Rank layers by what int8 does to them.")
@click.argument("bundle", type=FILE)
@click.option(
    "--calibration",
    type=FILE,
    multiple=True,
    required=True,
    help="Scan, or folder of scans, for ranges and ranking; repeat for more.",
)
@click.option("--calibrator", type=click.Choice(["percentile", "entropy"]), default="percentile", show_default=True)
@click.option(
    "--max-loss", type=float, callback=share, default=0.005, show_default=True, help="Dice that int8 may lose in all."
)
@click.option("-o", "--output", type=FILE, help="Exclusion list (.json) [kept in the bundle, for build-engine].")
@click.option("--threads", type=click.IntRange(1), help="CPU threads for the network [all cores].")
@click.option("--json", "as_json", is_flag=True, help="Print everything for machines.")
def sensitivity(
    bundle: Path,
    calibration: tuple[Path, ...],
    calibrator: str,
    max_loss: float,
    output: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Quantise every layer of BUNDLE alone and rank them by what it does to the class scores and to Dice.

    The worst, as many as it takes, are written to an exclusion list, which 'build-engine --int8' uses.
    """
    from masksam_deploy.base.optional import require_packages

    require_packages("onnx", "onnxruntime", extra="cpu,engines", purpose="quantising graphs")
    from masksam_deploy.base.memory import bounded_network
    from masksam_deploy.bundle.directory import Bundle
    from masksam_deploy.cli.progress import progress_bar
    from masksam_deploy.cli.warn import warn
    from masksam_deploy.engines.calibration import calibration_windows
    from masksam_deploy.engines.exclusions import Exclusions, default_path, write_exclusions
    from masksam_deploy.engines.quantisation import Calibrator
    from masksam_deploy.engines.sensitivity import measure_sensitivity
    from masksam_deploy.io.cases import find_scans

    loaded = Bundle.load(bundle)
    target = output or default_path(loaded)
    if output:
        _check_output(output, bundle)
    windows = calibration_windows(loaded, find_scans(calibration, loaded.channels, tell=warn))
    with bounded_network(), progress_bar("calibrating") as progress:
        found = measure_sensitivity(
            loaded,
            windows,
            calibrator=cast("Calibrator", calibrator),
            allowed=max_loss,
            threads=threads,
            progress=progress,
        )
    content = found.to_dict()
    write_exclusions(
        Exclusions(
            bundle_sha256=loaded.sha256,
            excluded={name: list(nodes) for name, nodes in found.excluded.items()},
            ranking=content["ranking"],
            settings={
                "calibrator": calibrator,
                "allowed_dice_loss": max_loss,
                "dice_loss": found.dice_loss,
                "dice_loss_of_all": found.dice_loss_of_all,
                "calibration": windows.scans,
                "calibration_sha256": windows.sha256,
            },
        ),
        target,
    )
    if as_json:
        click.echo(json.dumps({"exclusions": str(target), **content}, indent=2))
        return
    _tell(found, target)


def _check_output(path: Path, bundle: Path) -> None:
    """Refuse what must not be written over, before the work: patient data above all, and a bundle's files."""
    from masksam_deploy.base.atomic import check_writable
    from masksam_deploy.base.errors import BundleError, OutputError
    from masksam_deploy.base.paths import resolved
    from masksam_deploy.base.text import shown

    if path.suffix.lower() != ".json":
        raise OutputError(f"{shown(path)}: found '{path.suffix}' as its type, expected .json; rename it")
    if resolved(bundle, BundleError) in resolved(path, OutputError).parents:
        raise OutputError(f"{shown(path)} lies inside the bundle, which must stay as it is; write elsewhere")
    check_writable(path)


def _tell(found: Any, target: Path) -> None:
    from masksam_deploy.base.tables import figures, open_console, table, words

    open_console(sys.stdout).print(
        table(
            f"most harmful of {len(found.ranking)} layers",
            (*words("graph", "layer"), *figures("score error", "Dice lost")),
            [
                (loss.graph, loss.node, f"{loss.score_error:.4f}", f"{loss.dice_loss:.4f}")
                for loss in found.ranking[:SHOWN]
            ],
        )
    )
    left_out = sum(len(nodes) for nodes in found.excluded.values())
    click.echo(
        f"all in int8: {found.dice_loss_of_all:.4f} of Dice lost on the judged windows; without the {left_out} left "
        f"out: {found.dice_loss:.4f}"
    )
    click.echo(f"wrote {printable(target)}; build-engine --int8 uses the bundle's own list, others with --exclude")
