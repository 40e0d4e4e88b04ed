"""The compare command's work: run both sides, write and print how far they agree, and check the demands."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click

from masksam_deploy.base.atomic import atomic_path, check_writable
from masksam_deploy.base.errors import BundleError, OutputError
from masksam_deploy.base.memory import bounded_network
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import printable, shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn
from masksam_deploy.comparison import Comparison, Side, check_agreement, check_dice, compare
from masksam_deploy.comparison.files import to_dict, write_csv
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.spec import Precision, Target
from masksam_deploy.scan_path.windows import Accumulator


@dataclass(frozen=True)
class CompareRequest:
    """The command's parameters, see `compare --help`."""

    a: Path
    b: Path
    scans: tuple[Path, ...]
    device_a: Device
    device_b: Device
    backend_a: Target
    backend_b: Target
    precision_a: Precision
    precision_b: Precision
    accumulator_a: Accumulator
    accumulator_b: Accumulator
    tta: bool
    threads: int | None
    max_ram: int | None
    csv: Path | None
    min_agreement: float | None
    min_dice: float | None
    as_json: bool

    @property
    def runs_on_cpu(self) -> bool:
        """Whether both sides run in ONNX Runtime on the CPU, where the network's memory can be limited."""
        return (self.device_a, self.device_b) == ("cpu", "cpu") and {self.backend_a, self.backend_b} == {"onnxruntime"}


def run_compare(request: CompareRequest) -> None:
    """Compare what is asked for, and print and write the results.

    Raises:
        MaskSamError: an input or an output is refused, or a network cannot run.
        DisagreementError: the sides agree less than demanded; the results are written.
    """
    if request.csv:
        _check_csv(request.csv, (request.a, request.b))
    side_a, side_b = _sides(request)
    memory = bounded_network(request.max_ram) if request.runs_on_cpu else nullcontext()
    with memory, progress_bar("loading") as progress:
        comparison = compare(
            side_a,
            side_b,
            request.scans,
            threads=request.threads,
            max_ram=request.max_ram,
            progress=progress,
            tell=warn,
        )
    if request.csv:
        with atomic_path(request.csv) as temporary:
            write_csv(comparison, temporary)
    _print(comparison, request)
    if request.min_agreement is not None:
        check_agreement(comparison, request.min_agreement)
    if request.min_dice is not None:
        check_dice(comparison, request.min_dice)


def _sides(request: CompareRequest) -> tuple[Side, Side]:
    a = Bundle.load(request.a)
    b = a if request.b == request.a else Bundle.load(request.b)
    return (
        Side(a, request.device_a, request.backend_a, request.precision_a, request.accumulator_a, request.tta),
        Side(b, request.device_b, request.backend_b, request.precision_b, request.accumulator_b, request.tta),
    )


def _check_csv(path: Path, bundles: tuple[Path, Path]) -> None:
    """Refuse, before minutes of work, a table that cannot be written, or that would overwrite a scan or a bundle."""
    if path.suffix.lower() != ".csv":
        raise OutputError(f"{shown(path)}: found the file type '{path.suffix}', expected .csv; rename it")
    if {resolved(bundle, BundleError) for bundle in bundles} & set(resolved(path, OutputError).parents):
        raise OutputError(
            f"{shown(path)}: found an output that lies inside a bundle, which must not change; write elsewhere"
        )
    check_writable(path)


def _print(comparison: Comparison, request: CompareRequest) -> None:
    if request.as_json:
        click.echo(json.dumps(to_dict(comparison), indent=2, allow_nan=False))
        return
    # rich only now: --json does without it.
    from masksam_deploy.comparison.tables import print_tables

    print_tables(comparison, sys.stdout)
    if request.csv:
        click.echo(f"csv: {printable(request.csv)}")
