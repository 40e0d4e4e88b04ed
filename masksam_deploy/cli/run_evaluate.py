"""The evaluate command's work: pair the files, compare them, write and print the results, and check the demand."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from masksam_deploy.base.atomic import atomic_path, check_writable
from masksam_deploy.base.errors import OutputError, ScanError
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import printable, shown
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn
from masksam_deploy.evaluation import Evaluation, evaluate_pairs
from masksam_deploy.evaluation.evaluation import check_mean_dice
from masksam_deploy.evaluation.files import to_dict, write_csv
from masksam_deploy.evaluation.label_names import read_label_names
from masksam_deploy.evaluation.pairing import pair_cases, with_scans

_SUFFIXES = {"csv": ".csv", "report": ".json", "plot": ".png"}


@dataclass(frozen=True)
class EvaluateRequest:
    """The command's parameters, see `evaluate --help`."""

    predictions: Path
    references: Path
    labels: Path | None
    allow_missing: bool
    csv: Path | None
    report: Path | None
    plot: Path | None
    scans: Path | None
    min_dice: float | None
    as_json: bool

    @property
    def inputs(self) -> list[Path]:
        """The files and folders that are only read."""
        return [path for path in (self.predictions, self.references, self.labels, self.scans) if path]

    @property
    def outputs(self) -> dict[str, Path]:
        """The files to write, by kind."""
        named = {"csv": self.csv, "report": self.report, "plot": self.plot}
        return {kind: path for kind, path in named.items() if path}


def run_evaluate(request: EvaluateRequest) -> None:
    """Evaluate what is asked for, and print and write the results.

    Raises:
        click.UsageError: scans are given without a plot.
        EvaluationError, ScanError: the files do not pair up, or cannot be read or compared.
        OutputError: an output is refused.
        DiceTooLowError: a class is worse than demanded; the results are written.
    """
    if request.scans and not request.plot:
        raise click.UsageError("--scans is what --plot draws on; give --plot as well")
    _check_outputs(request)
    evaluation = _evaluated(request)
    _write(evaluation, request.outputs)
    _print(evaluation, request)
    if request.min_dice is not None:
        check_mean_dice(evaluation, request.min_dice)


def _evaluated(request: EvaluateRequest) -> Evaluation:
    names = read_label_names(request.labels) if request.labels else None
    pairing = pair_cases(request.predictions, request.references, allow_missing=request.allow_missing)
    if request.scans:
        pairing = with_scans(pairing, request.scans, allow_missing=request.allow_missing)
    with progress_bar("cases") as progress:
        advance = partial(progress, "cases") if progress else None
        return evaluate_pairs(pairing, names=names, progress=advance, tell=warn)


def _check_outputs(request: EvaluateRequest) -> None:
    """Refuse, before any work, outputs that cannot be written, or that would overwrite an input."""
    if not request.outputs:
        return
    places = {resolved(place, ScanError) for place in request.inputs}
    for kind, path in request.outputs.items():
        suffix = _SUFFIXES[kind]
        if path.suffix.lower() != suffix:
            raise OutputError(f"{shown(path)}: found the file type '{path.suffix}', expected {suffix}; rename it")
        target = resolved(path, OutputError)
        if target.exists() and places & {target, *target.parents}:
            raise OutputError(f"{shown(path)}: found an output among the inputs, which are only read; write elsewhere")
        check_writable(path)
    if request.plot:
        from masksam_deploy.evaluation.figure import require_matplotlib

        require_matplotlib()


def _write(evaluation: Evaluation, outputs: dict[str, Path]) -> None:
    """Write all outputs under temporary names, then rename them together."""
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


def _print(evaluation: Evaluation, request: EvaluateRequest) -> None:
    if request.as_json:
        click.echo(json.dumps(to_dict(evaluation), indent=2, allow_nan=False))
        return
    # rich only now: --json does without it.
    from masksam_deploy.evaluation.tables import print_tables

    print_tables(evaluation, sys.stdout)
    for kind, path in request.outputs.items():
        click.echo(f"{kind}: {printable(path)}")
