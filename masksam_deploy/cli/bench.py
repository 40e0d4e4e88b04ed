"""`masksam-deploy bench`: how fast a bundle runs on this machine, after checking that it runs right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from masksam_deploy.cli.help import Command, OptionGroup
from masksam_deploy.cli.values import BASELINE_MODE, DEVICE, FILE, THREADS, window_step

contenders = OptionGroup("What is measured")
scope = OptionGroup("How much is measured")
hardware = OptionGroup("Scans and hardware")
files = OptionGroup("Results")

EXAMPLES = {
    "Measure the float32 graphs and every valid engine": "masksam-deploy bench lv.masksam scan.nii.gz --json new.json",
    "Measure two backends and PyTorch": "masksam-deploy bench lv.masksam --run onnxruntime:fp32 \\\n"
    "    --run onnxruntime:int8 --baseline checkpoint_final.pth",
    "Fail if a change made something slower": "masksam-deploy bench --compare old.json new.json",
}


@click.command(cls=Command, short_help="Measure how fast a bundle runs here, after checking it.", examples=EXAMPLES)
@click.argument("bundle", required=False, type=FILE)
@click.argument("scan", required=False, type=FILE)
@contenders(
    "--run",
    "runs",
    multiple=True,
    metavar="BACKEND:PRECISION",
    help="Backend and precision to measure, e.g. onnxruntime:int8. Repeat for more. Default: the float32 graphs and "
    "every engine that is valid here.",
)
@contenders("--baseline", type=FILE, help="Checkpoint that the bundle was exported from, to run in PyTorch as well.")
@contenders(
    "--baseline-mode",
    "modes",
    multiple=True,
    type=BASELINE_MODE,
    help="How PyTorch runs the checkpoint. amp needs a GPU, compile takes minutes. Repeat for more. Default: eager.",
)
@scope(
    "--repeats",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="Timed windows per backend.",
)
@scope(
    "--scan-repeats",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    metavar="N",
    help="Timed scans per backend; 0 times windows only.",
)
@scope(
    "--windows",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Different windows of the scan to use.",
)
@scope(
    "--in-turns/--one-by-one",
    default=True,
    help="Load all backends together and time them in turns, or load and time them one by one, for networks that do "
    "not fit into memory together. Default: in turns.",
)
@scope("--cold/--no-cold", default=True, help="Also time fresh processes. Default: on.")
@scope("--roofline/--no-roofline", default=True, help="Also measure the peak of this machine. Default: on.")
@hardware(
    "-c", "--channel", "channels", multiple=True, type=FILE, help="Further input channel of SCAN. Repeat for more."
)
@hardware("--tta/--no-tta", default=True, help="Mirror windows where the bundle allows it. Default: on.")
@hardware(
    "--step",
    type=float,
    callback=window_step,
    default=0.5,
    show_default=True,
    metavar="SHARE",
    help="Distance between windows as a share of the patch size.",
)
@hardware("--device", type=DEVICE, default="cpu", show_default=True, help="Device of ONNX Runtime and PyTorch.")
@hardware("--threads", type=THREADS, metavar="N", help="CPU threads. Default: all cores.")
@files("--json", "json_path", type=FILE, help="File for all results, for programs and --compare (.json).")
@files("--html", "html_path", type=FILE, help="Report with plots to write (.html).")
@files("--compare", "compared", nargs=2, type=FILE, metavar="OLD NEW", help="Only compare two JSON results.")
@click.pass_context
def bench(context: click.Context, /, compared: tuple[Path, Path] | None, **options: Any) -> None:
    """Measure how fast BUNDLE runs: single windows, whole scans stage by stage, and fresh processes.

    Without SCAN, the validation scan of the bundle is used, or else a synthetic scan. First every backend is compared
    with the float32 graphs. Backends that disagree with float32 are not timed, and the exit code is 3.

    With --compare, two results are compared instead. The exit code is 3 if a window, a graph, the scan or a stage
    became slower by more than the noise, or if more memory is needed. The start of a fresh process is timed once and
    not compared.
    """
    from masksam_deploy.cli.run_bench import BenchRequest, compare_results_of, run_bench_command

    if compared:
        _refuse_other_parameters(context)
        compare_results_of(*compared)
    else:
        run_bench_command(BenchRequest(**options))


def _refuse_other_parameters(context: click.Context) -> None:
    others = [
        parameter.get_error_hint(context)
        for parameter in context.command.params
        if parameter.name != "compared"
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if others:
        raise click.UsageError(f"--compare takes two results and nothing else, found {', '.join(others)}")
