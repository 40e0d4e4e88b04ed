"""The build-engine command's work: make a build request from the parameters, build, and print the verdict."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.memory import bounded_network
from masksam_deploy.base.optional import require_packages
from masksam_deploy.base.tables import Cell, figure, figures, open_console, table, words
from masksam_deploy.base.text import one_line, printable, shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.build_engine import TYPED
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn
from masksam_deploy.io.cases import ScanFiles, find_scans
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.registry import BuildOptions, BuiltEngine, open_builder
from masksam_deploy.runtimes.spec import EngineSpec, Precision, Target

# What builds engines imports onnx, which is checked first.
if TYPE_CHECKING:
    from masksam_deploy.engines.build import BuildRequest, BuildResult
    from masksam_deploy.engines.gate import Case, CaseResult, Verdict
    from masksam_deploy.engines.quantisation import Calibrator


@dataclass(frozen=True)
class BuildEngineRequest:
    """The command's parameters, see `build-engine --help`; None where an option was not typed."""

    bundle: Path
    precision: Precision | None
    overrides: Mapping[str, Precision]
    target: Target
    device: Device
    gpu: str | None
    calibration: tuple[Path, ...]
    windows: int
    calibrator: Calibrator
    exclude: Path | None
    validation: tuple[Path, ...]
    references: Path | None
    max_mean_loss: float | None
    max_class_loss: float | None
    strict: bool
    no_gate: bool
    batches: tuple[int, int, int]
    workspace: int | None
    optimization_level: int | None
    timing_cache: Path | None
    hardware_compatible: bool
    version_compatible: bool
    strip_weights: bool
    threads: int | None
    as_json: bool


def run_build_engine(request: BuildEngineRequest) -> None:
    """Build an engine, keep it in the bundle, and print what the gate found.

    Raises:
        click.UsageError: parameters are missing or contradict each other.
        MissingDependencyError: what builds engines is not installed.
        BundleError, ScanError, EngineError: an input is refused, or the engine cannot be built.
        GateError: too much Dice is lost.
    """
    precision = _checked_precision(request)
    require_packages("onnx", "onnxruntime", extra="cpu,engines", purpose="building engines")
    from masksam_deploy.engines.build import build_engine

    bundle = Bundle.load(request.bundle)
    spec = EngineSpec.of(bundle, request.target, precision, request.overrides, device=request.device)
    wanted = _build_request(bundle, spec, request)
    started = time.perf_counter()
    on_cpu = request.target == "onnxruntime" and request.device == "cpu"
    with progress_bar("calibrating") as progress, bounded_network() if on_cpu else nullcontext():
        result = build_engine(bundle, open_builder(request.target, device=request.device), wanted, progress)
    if request.as_json:
        content = {"engine": str(result.engine.folder), **result.engine.record.model_dump(mode="json")}
        click.echo(json.dumps(content, indent=2))
    else:
        _print_result(result, time.perf_counter() - started)


def _checked_precision(request: BuildEngineRequest) -> Precision:
    """The precision, if the options fit together."""
    if request.precision is None:
        raise click.UsageError("say in which precision: --fp16, --int8, --bf16 or --fp32")
    if request.exclude and "int8" not in (request.precision, *request.overrides.values()):
        raise click.UsageError("--exclude lists layers that stay out of int8; ask for --int8, or leave it out")
    if request.no_gate and (request.validation or request.references or request.strict):
        raise click.UsageError("--no-gate switches off what --validation, --references and --strict are for")
    return request.precision


def _build_request(bundle: Bundle, spec: EngineSpec, request: BuildEngineRequest) -> BuildRequest:
    from masksam_deploy.engines.build import BuildRequest
    from masksam_deploy.engines.exclusions import read_exclusions

    return BuildRequest(
        spec=spec,
        options=_build_options(request),
        validation=None if request.no_gate else _validation(bundle, request),
        calibration=_scans(request.calibration, bundle),
        windows=request.windows,
        max_mean_loss=request.max_mean_loss,
        max_class_loss=request.max_class_loss,
        calibrator=request.calibrator,
        excluded=read_exclusions(bundle, request.exclude) if "int8" in spec.precisions.values() else {},
        strict=request.strict,
        threads=request.threads,
        command=_typed_command(),
    )


def _build_options(request: BuildEngineRequest) -> BuildOptions:
    return BuildOptions(
        batches=request.batches,
        workspace_bytes=request.workspace,
        hardware_compatible=request.hardware_compatible,
        version_compatible=request.version_compatible,
        strip_weights=request.strip_weights,
        timing_cache=request.timing_cache,
        optimization_level=request.optimization_level,
        gpus=tuple(part.strip() for part in request.gpu.split(",")) if request.gpu else (),
    )


def _scans(paths: tuple[Path, ...], bundle: Bundle) -> list[ScanFiles]:
    return find_scans(paths, bundle.channels, tell=warn) if paths else []


def _validation(bundle: Bundle, request: BuildEngineRequest) -> list[Case]:
    """The scans that the gate judges by: those that were named, or else the bundle's own."""
    from masksam_deploy.engines.gate import validation_cases, with_references

    scans = _scans(request.validation, bundle)
    if request.references and not scans:
        raise click.UsageError("--references belong to scans: name these with --validation")
    cases = with_references(scans, request.references) if scans else validation_cases(bundle)
    if not cases:
        raise EngineError(
            f"{shown(request.bundle)}: found no validation scans in the bundle, expected some to judge the engine by; "
            "name scans with --validation, and their label maps with --references if you have them, or use --no-gate"
        )
    return cases


def _typed_command() -> str:
    """The command as it was typed, for the engine's record."""
    from masksam_deploy.engines.store import command_line

    return command_line(["build-engine", *click.get_current_context().meta[TYPED]])


def _print_result(result: BuildResult, seconds: float) -> None:
    _print_verdict(result)
    for name, built in result.built.items():
        _print_graph(name, built, result.engine.record.precisions[name])
    folder = result.engine.folder
    click.echo(f"wrote {printable(folder)} ({seconds:.0f} s)")
    click.echo(f"next: masksam-deploy infer SCAN -b {printable(folder.parents[1])} -o SEG.nii.gz")


def _print_verdict(result: BuildResult) -> None:
    from masksam_deploy.engines.build import attempt_summary

    record = result.engine.record
    if result.attempts:
        open_console(sys.stdout).print(_gate_table(result.attempts[-1].verdict))
    else:
        click.echo("NOT JUDGED: the gate was switched off with --no-gate. Nothing shows that this engine is right.")
    if result.attempts and record.target != "onnxruntime":
        here = record.gate["on_device"] is not None
        click.echo(f"the engines themselves were {'' if here else 'not '}judged on this machine's GPU")
    if record.gate.get("judged_on_calibration_scans"):
        click.echo("note: the engine was judged on the scans that it was calibrated on; other scans would show more")
    for attempt in result.attempts[:-1]:
        click.echo(f"fell back: {attempt_summary(attempt)}")


def _print_graph(name: str, built: BuiltEngine, precision: Precision) -> None:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(built.precision_in_graph.items()))
    click.echo(f"{name}: {precision} (operators: {counts}), {built.bytes:,} bytes")
    for note in built.notes:
        click.echo(f"  {one_line(note, limit=500)}")
    if built.precision_found is None and built.not_read_back:
        click.echo(f"  not read back from the engine: {built.not_read_back}")


def _gate_table(verdict: Verdict) -> Table:
    """The Dice that each case lost, and the loss that is allowed."""
    with_reference = any(case.float32 is not None for case in verdict.cases)
    against = ("float32 with reference", "engine with reference") if with_reference else ()
    name, worst = verdict.worst_class
    unjudged = f"; in no case, so not judged: {', '.join(map(one_line, verdict.unjudged))}" if verdict.unjudged else ""
    return table(
        "Dice gate",
        (*words("case", "class"), *figures("same label", "Dice with float32", *against, "Dice lost", fold=True)),
        (row for case in verdict.cases for row in _gate_rows(case, with_reference)),
        caption=f"mean loss {verdict.mean_loss:.4f} (allowed {verdict.limits.mean:g}), worst class '{one_line(name)}' "
        f"{worst:.4f} (allowed {verdict.limits.worst_class:g}){unjudged}",
    )


def _gate_rows(case: CaseResult, with_reference: bool) -> list[tuple[Cell, ...]]:
    losses, sides = case.losses(), (case.float32, case.engine) if with_reference else ()
    return [
        (
            case.case,
            name,
            f"{case.agreement:.4%}",
            figure(between, 4),
            *(figure((side or {}).get(name), 4) for side in sides),
            figure(losses.get(name), 4),
        )
        for name, between in case.between.items()
    ]
