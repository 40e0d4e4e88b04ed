"""The bench command's work: open what is measured, measure it, write and print the results."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from masksam_deploy.base.text import printable
from masksam_deploy.bench.benchmark import Settings, run_bench
from masksam_deploy.bench.compare import check_regressions, compare_results
from masksam_deploy.bench.contenders import (
    BaselineMode,
    Contender,
    baseline_contender,
    bundle_contender,
    parse_run,
    valid_contenders,
)
from masksam_deploy.bench.files import check_disagreements, check_outputs, write_outputs
from masksam_deploy.bench.inputs import bench_scan
from masksam_deploy.bench.measure import ScanSettings
from masksam_deploy.bench.results import BenchResult, read_result
from masksam_deploy.bench.table import print_comparison, print_result
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn_of_scans
from masksam_deploy.runtimes.base import Device


@dataclass(frozen=True)
class BenchRequest:
    """The command's parameters but for `--compare`, see `bench --help`."""

    bundle: Path | None
    scan: Path | None
    channels: tuple[Path, ...]
    runs: tuple[str, ...]
    baseline: Path | None
    modes: tuple[BaselineMode, ...]
    device: Device
    repeats: int
    scan_repeats: int
    windows: int
    threads: int | None
    tta: bool
    step: float
    in_turns: bool
    cold: bool
    roofline: bool
    json_path: Path | None
    html_path: Path | None


def run_bench_command(request: BenchRequest) -> None:
    """Measure what is asked for, and print and write the results.

    Raises:
        click.UsageError: parameters are missing or contradict each other.
        MaskSamError: an input or an output is refused, or nothing can be measured.
        DisagreementError: a backend disagrees with the float32 graphs; the results are written.
    """
    if request.bundle is None:
        raise click.UsageError("give a BUNDLE, or --compare OLD NEW")
    if request.modes and not request.baseline:
        raise click.UsageError("--baseline-mode belongs to a checkpoint: name it with --baseline")
    if request.channels and not request.scan:
        raise click.UsageError("--channel belongs to a scan: name its first channel as SCAN")
    check_outputs(request.bundle, request.json_path, request.html_path)
    bundle = Bundle.load(request.bundle)
    contenders = _contenders(bundle, request)
    given = (request.scan, *request.channels) if request.scan else ()
    with bench_scan(bundle, given) as scan:
        warn_of_scans(scan.paths)
        with progress_bar("loading") as progress:
            result = run_bench(bundle, contenders, scan, _settings(request), progress)
    write_outputs(result, request.json_path, request.html_path)
    _print(result, request)
    check_disagreements(result)


def compare_results_of(old: Path, new: Path) -> None:
    """Compare two results that `--json` wrote, and print the comparison.

    Raises:
        BenchError: a file holds no result, or the two cannot be compared.
        RegressionError: something became slower or larger.
    """
    comparison = compare_results(read_result(old), read_result(new))
    print_comparison(comparison, sys.stdout)
    check_regressions(comparison)


def _settings(request: BenchRequest) -> Settings:
    return Settings(
        repeats=request.repeats,
        scan_repeats=request.scan_repeats,
        windows=request.windows,
        threads=request.threads,
        cold=request.cold,
        roofline=request.roofline,
        scan=ScanSettings(request.tta, request.step),
        in_turns=request.in_turns,
    )


def _contenders(bundle: Bundle, request: BenchRequest) -> list[Contender]:
    device, threads = request.device, request.threads
    if request.runs:
        pairs = [parse_run(text) for text in request.runs]
        found = [bundle_contender(bundle, *pair, device=device, threads=threads) for pair in pairs]
    else:
        found = valid_contenders(bundle, device=device, threads=threads)
    if request.baseline:
        modes: tuple[BaselineMode, ...] = request.modes or ("eager",)
        found += [baseline_contender(request.baseline, bundle, mode, device=device, threads=threads) for mode in modes]
    return found


def _print(result: BenchResult, request: BenchRequest) -> None:
    print_result(result, sys.stdout)
    for kind, path in (("json", request.json_path), ("html", request.html_path)):
        if path:
            click.echo(f"{kind}: {printable(path)}")
