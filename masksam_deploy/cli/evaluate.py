"""`masksam-deploy evaluate`: predicted label maps against references."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from masksam_deploy.base.text import printable
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.values import FILE, share

if TYPE_CHECKING:
    from masksam_deploy.evaluation import Evaluation

_SUFFIXES = {"csv": ".csv", "report": ".json", "plot": ".png"}


@click.command(short_help="Compare label maps with references.")
@click.argument("predictions", type=FILE)
@click.argument("references", type=FILE)
@click.option("--labels", type=FILE, help="Names of the classes: an nnU-Net dataset.json or a bundle directory.")
@click.option("--allow-missing", is_flag=True, help="Leave out files without a counterpart instead of refusing them.")
@click.option("--csv", type=FILE, help="Write a row per case and class (.csv).")
@click.option("--report", type=FILE, help="Write everything, with definitions (.json).")
@click.option("--plot", type=FILE, help="Draw box plots and the worst cases (.png).")
@click.option("--scans", type=FILE, help="Folder of scans to draw beneath; for one case, the scan.")
@click.option("--min-dice", type=float, callback=share, help="Exit with 3 if any class's mean Dice is below.")
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of tables.")
def evaluate(
    predictions: Path,
    references: Path,
    labels: Path | None,
    allow_missing: bool,
    csv: Path | None,
    report: Path | None,
    plot: Path | None,
    scans: Path | None,
    min_dice: float | None,
    as_json: bool,
) -> None:
    """Compare the label maps in PREDICTIONS with those of the same name in REFERENCES.

    Both are folders, or both are files. Per case and class: Dice, IoU, 95 % Hausdorff distance, average symmetric
    surface distance, and volumes. A class that is empty on both sides of a case does not count there; one that is
    empty on one side counts with a Dice of 0 and has no distances.
    """
    if scans and not plot:
        raise click.UsageError("--scans is what --plot draws on; give --plot as well")
    wanted = {"csv": csv, "report": report, "plot": plot}
    outputs = {kind: path for kind, path in wanted.items() if path}
    _check_outputs(outputs, (predictions, references, labels, scans))

    from masksam_deploy.evaluation import evaluate_pairs
    from masksam_deploy.evaluation.evaluation import check_mean_dice
    from masksam_deploy.evaluation.files import to_dict
    from masksam_deploy.evaluation.label_names import read_label_names
    from masksam_deploy.evaluation.pairing import pair_cases, with_scans

    names = read_label_names(labels) if labels else None
    pairing = pair_cases(predictions, references, allow_missing=allow_missing)
    if scans:
        pairing = with_scans(pairing, scans, allow_missing=allow_missing)
    with progress_bar("cases") as progress:
        advance = partial(progress, "cases") if progress else None
        evaluation = evaluate_pairs(pairing, names=names, progress=advance)
    _write(evaluation, outputs)
    if as_json:
        click.echo(json.dumps(to_dict(evaluation), indent=2, allow_nan=False))
    else:
        _tell(evaluation, outputs)
    if min_dice is not None:
        check_mean_dice(evaluation, min_dice)


def _check_outputs(outputs: dict[str, Path], inputs: tuple[Path | None, ...]) -> None:
    """Refuse what cannot or must not be written, before any work: nothing that was there may be lost in an input."""
    from masksam_deploy.base.atomic import check_writable
    from masksam_deploy.base.errors import OutputError, ScanError
    from masksam_deploy.base.paths import resolved
    from masksam_deploy.base.text import shown

    for kind, path in outputs.items():
        suffix = _SUFFIXES[kind]
        if path.suffix.lower() != suffix:
            raise OutputError(f"'{shown(path)}': found '{path.suffix}' as its type, expected {suffix}; rename it")
        places = {resolved(place, ScanError) for place in inputs if place}
        target = resolved(path, OutputError)
        if target.exists() and places & {target, *target.parents}:
            raise OutputError(f"'{shown(path)}' belongs to what is only read; write elsewhere")
        check_writable(path)
    if "plot" in outputs:
        from masksam_deploy.evaluation.figure import require_matplotlib

        require_matplotlib()


def _write(evaluation: Evaluation, outputs: dict[str, Path]) -> None:
    """Produce all outputs under temporary names, then rename them together."""
    from masksam_deploy.base.atomic import atomic_path
    from masksam_deploy.evaluation.files import to_dict, write_csv

    with ExitStack() as stack:
        temporary = {kind: stack.enter_context(atomic_path(path)) for kind, path in outputs.items()}
        if "csv" in temporary:
            write_csv(evaluation, temporary["csv"])
        if "report" in temporary:
            text = json.dumps(to_dict(evaluation), indent=2, allow_nan=False)
            temporary["report"].write_text(text + "\n", encoding="utf-8")
        if "plot" in temporary:
            from masksam_deploy.evaluation.figure import draw_figure

            draw_figure(evaluation, temporary["plot"])


def _tell(evaluation: Evaluation, outputs: dict[str, Path]) -> None:
    # rich only now: --json does without it.
    from masksam_deploy.evaluation.tables import print_tables

    print_tables(evaluation, sys.stdout)
    for kind, path in outputs.items():
        click.echo(f"{kind}: {printable(path)}")
