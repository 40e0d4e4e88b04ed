"""`masksam-deploy bench`: how fast a bundle runs here, after checking that it runs right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from masksam_deploy.base.text import printable
from masksam_deploy.cli.infer import checked_step
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.values import FILE

if TYPE_CHECKING:
    from masksam_deploy.bench.contenders import BaselineMode, Contender
    from masksam_deploy.bench.results import BenchResult
    from masksam_deploy.bundle.directory import Bundle
    from masksam_deploy.runtimes.base import Device


@click.command(short_help="Measure a bundle stage by stage, after checking it.")
@click.argument("bundle", required=False, type=FILE)
@click.argument("scan", required=False, type=FILE)
@click.option("-c", "--channel", "channels", multiple=True, type=FILE, help="Further input channel of SCAN.")
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="BACKEND:PRECISION",
    help="Such as onnxruntime:int8; repeat for more [the float32 graphs and every engine that is valid here].",
)
@click.option("--baseline", type=FILE, help="The checkpoint of the bundle, to run it in PyTorch as well.")
@click.option(
    "--baseline-mode",
    "modes",
    multiple=True,
    type=click.Choice(["eager", "amp", "compile"]),
    help="How PyTorch runs it; amp needs a GPU, compile takes minutes; repeat for more [eager].",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Windows timed, per contender.")
@click.option(
    "--scan-repeats", type=click.IntRange(0), default=3, show_default=True, help="Scans timed; 0 for windows only."
)
@click.option("--windows", type=click.IntRange(1), default=3, show_default=True, help="Different windows to time.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads [all cores].")
@click.option("--tta/--no-tta", default=True, help="Mirror windows of the scan where the bundle allows it [on].")
@click.option("--step", type=float, callback=checked_step, default=0.5, show_default=True, help="As for infer.")
@click.option(
    "--in-turns/--one-by-one",
    default=True,
    help="Hold all contenders in memory and let them take turns, or load one at a time where they do not fit together "
    "[in turns].",
)
@click.option("--cold/--no-cold", default=True, help="Also start fresh processes [on].")
@click.option("--roofline/--no-roofline", default=True, help="Also measure the machine's peak [on].")
@click.option("--json", "json_path", type=FILE, help="Write everything for machines (.json).")
@click.option("--html", "html_path", type=FILE, help="Write a report with plots (.html).")
@click.option("--compare", "compared", nargs=2, type=FILE, metavar="OLD NEW", help="Compare two JSON results instead.")
@click.pass_context
def bench(
    context: click.Context,
    bundle: Path | None,
    scan: Path | None,
    channels: tuple[Path, ...],
    runs: tuple[str, ...],
    baseline: Path | None,
    modes: tuple[BaselineMode, ...],
    device: Device,
    repeats: int,
    scan_repeats: int,
    windows: int,
    threads: int | None,
    tta: bool,
    step: float,
    in_turns: bool,
    cold: bool,
    roofline: bool,
    json_path: Path | None,
    html_path: Path | None,
    compared: tuple[Path, Path] | None,
) -> None:
    """Measure BUNDLE on SCAN: one window, a whole scan stage by stage, a fresh process, and the machine's limits.

    Without SCAN, the bundle's own validation scan is used, else a synthetic one. Every contender is first held to the
    float32 graphs; one that disagrees gets no time, and the exit code is 3. With --compare, two results are compared
    instead; the exit code is 3 if a window, a graph, the scan or a stage became slower by more than the noise, or the
    peak memory larger. How long a fresh process takes is measured once, and not compared.
    """
    if compared:
        others = [param for param in context.command.params if param.name != "compared" and _was_given(context, param)]
        if others:
            names = ", ".join(param.get_error_hint(context) for param in others)
            raise click.UsageError(f"--compare takes two results and nothing else, found {names}")
        _compare(*compared)
        return
    if bundle is None:
        raise click.UsageError("give a BUNDLE, or --compare OLD NEW")
    if modes and not baseline:
        raise click.UsageError("--baseline-mode belongs to a checkpoint: name it with --baseline")
    if channels and not scan:
        raise click.UsageError("--channel belongs to a scan: name its first channel as SCAN")

    from masksam_deploy.bench.benchmark import Settings, run_bench
    from masksam_deploy.bench.files import check_disagreements, check_outputs, write_outputs
    from masksam_deploy.bench.inputs import bench_scan
    from masksam_deploy.bench.measure import ScanSettings
    from masksam_deploy.bundle.directory import Bundle

    check_outputs(bundle, json_path, html_path)
    loaded = Bundle.load(bundle)
    contenders = _contenders(loaded, runs, baseline, modes, device, threads)
    given = (scan, *channels) if scan else ()
    settings = Settings(
        repeats, scan_repeats, windows, threads, cold, roofline, ScanSettings(tta, step), in_turns=in_turns
    )
    with bench_scan(loaded, given) as input_scan, progress_bar("loading") as progress:
        result = run_bench(loaded, contenders, input_scan, settings, progress)
    write_outputs(result, json_path, html_path)
    _tell(result, json_path, html_path)
    check_disagreements(result)


def _was_given(context: click.Context, parameter: click.Parameter) -> bool:
    return context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE


def _contenders(
    bundle: Bundle,
    runs: tuple[str, ...],
    baseline: Path | None,
    modes: tuple[BaselineMode, ...],
    device: Device,
    threads: int | None,
) -> list[Contender]:
    from masksam_deploy.bench.contenders import baseline_contender, bundle_contender, parse_run, valid_contenders

    if runs:
        pairs = [parse_run(text) for text in runs]
        found = [bundle_contender(bundle, *pair, device=device, threads=threads) for pair in pairs]
    else:
        found = valid_contenders(bundle, device=device, threads=threads)
    if baseline:
        chosen: tuple[BaselineMode, ...] = modes or ("eager",)
        found += [baseline_contender(baseline, bundle, mode, device=device, threads=threads) for mode in chosen]
    return found


def _tell(result: BenchResult, json_path: Path | None, html_path: Path | None) -> None:
    from masksam_deploy.bench.table import print_result

    print_result(result, sys.stdout)
    for kind, path in (("json", json_path), ("html", html_path)):
        if path:
            click.echo(f"{kind}: {printable(path)}")


def _compare(old: Path, new: Path) -> None:
    from masksam_deploy.bench.compare import check_regressions, compare_results
    from masksam_deploy.bench.results import read_result
    from masksam_deploy.bench.table import print_comparison

    comparison = compare_results(read_result(old), read_result(new))
    print_comparison(comparison, sys.stdout)
    check_regressions(comparison)
