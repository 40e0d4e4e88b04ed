"""The build-engine command's work: what was typed to a request, build, tell."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.optional import require_packages
from masksam_deploy.base.tables import Cell, figure, figures, open_console, table, words
from masksam_deploy.base.text import one_line, printable, shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.build_engine import TYPED
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn


def run_build_engine(
    *,
    bundle: Path,
    precision: str | None,
    overrides: Mapping[str, Any],
    target: Any,
    device: Any,
    gpu: str | None,
    calibration: Sequence[Path],
    windows: int,
    calibrator: Any,
    exclude: Path | None,
    validation: Sequence[Path],
    references: Path | None,
    max_mean_loss: float | None,
    max_class_loss: float | None,
    strict: bool,
    no_gate: bool,
    batches: tuple[int, int, int],
    workspace: int | None,
    optimization_level: int | None,
    timing_cache: Path | None,
    hardware_compatible: bool,
    version_compatible: bool,
    strip_weights: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Build and report; see the command's options."""
    if precision is None:
        raise click.UsageError("say in which precision: --fp16, --int8, --bf16 or --fp32")
    if exclude and "int8" not in (precision, *overrides.values()):
        raise click.UsageError("--exclude lists layers that stay out of int8; ask for --int8, or leave it out")
    if no_gate and (validation or references or strict):
        raise click.UsageError("--no-gate switches off what --validation, --references and --strict are for")
    require_packages("onnx", "onnxruntime", extra="cpu,engines", purpose="building engines")
    from masksam_deploy.base.memory import bounded_network
    from masksam_deploy.engines.build import BuildRequest, build_engine
    from masksam_deploy.engines.exclusions import read_exclusions
    from masksam_deploy.engines.gate import validation_cases, with_references
    from masksam_deploy.io.cases import find_scans
    from masksam_deploy.runtimes.registry import BuildOptions, open_builder
    from masksam_deploy.runtimes.spec import EngineSpec

    loaded = Bundle.load(bundle)
    spec = EngineSpec.of(loaded, target, precision, overrides, device=device)  # type: ignore[arg-type]
    cases = None
    if not no_gate:
        scans = find_scans(validation, loaded.channels, tell=warn) if validation else []
        if references and not scans:
            raise click.UsageError("--references belong to scans: name these with --validation")
        cases = with_references(scans, references) if scans else validation_cases(loaded)
        if not cases:
            raise EngineError(
                f"{shown(bundle)}: found no validation scans in the bundle, expected some to judge the engine by; name "
                "some with --validation, with --references if you have them, or type --no-gate"
            )
    request = BuildRequest(
        spec=spec,
        options=BuildOptions(
            batches=batches,
            workspace_bytes=workspace,
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            strip_weights=strip_weights,
            timing_cache=timing_cache,
            optimization_level=optimization_level,
            gpus=tuple(part.strip() for part in gpu.split(",")) if gpu else (),
        ),
        calibration=find_scans(calibration, loaded.channels, tell=warn) if calibration else (),
        windows=windows,
        validation=cases,
        max_mean_loss=max_mean_loss,
        max_class_loss=max_class_loss,
        calibrator=calibrator,
        excluded=read_exclusions(loaded, exclude) if "int8" in spec.precisions.values() else {},
        strict=strict,
        threads=threads,
        command=_command(),
    )
    started = time.perf_counter()
    on_cpu = target == "onnxruntime" and device == "cpu"
    with progress_bar("calibrating") as progress, bounded_network() if on_cpu else nullcontext():
        result = build_engine(loaded, open_builder(target, device=device), request, progress)
    if as_json:
        content = {"engine": str(result.engine.folder), **result.engine.record.model_dump(mode="json")}
        click.echo(json.dumps(content, indent=2))
        return
    _tell(result, time.perf_counter() - started)


def _command() -> str:
    """What was typed, to be typed again."""
    from masksam_deploy.engines.store import command_line

    return command_line(["build-engine", *click.get_current_context().meta[TYPED]])


def _tell(result: Any, seconds: float) -> None:
    record = result.engine.record
    if result.attempts:
        open_console(sys.stdout).print(_gate_table(result.attempts[-1].verdict))
    else:
        click.echo("NOT JUDGED: the gate was switched off with --no-gate. Nothing shows that this engine is right.")
    if result.attempts and record.target != "onnxruntime":
        here = record.gate["on_device"] is not None
        click.echo(f"the engines themselves were {'' if here else 'not '}judged on this machine's GPU")
    if record.gate.get("judged_on_calibration_scans"):
        click.echo("note: it was judged on scans that it was calibrated on; other scans would show more")
    for attempt in result.attempts[:-1]:
        from masksam_deploy.engines.build import told

        click.echo(f"fell back: {told(attempt)}")
    for name, built in result.built.items():
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(built.precision_in_graph.items()))
        click.echo(f"{name}: {record.precisions[name]} (operators: {counts}), {built.bytes:,} bytes")
        for note in built.notes:
            click.echo(f"  {one_line(note, limit=500)}")
        if built.precision_found is None and built.not_read_back:
            click.echo(f"  not read back from the engine: {built.not_read_back}")
    click.echo(f"wrote {printable(result.engine.folder)} ({seconds:.0f} s)")
    click.echo(f"next: masksam-deploy infer SCAN -b {printable(result.engine.folder.parents[1])} -o SEG.nii.gz")


def _gate_table(verdict: Any) -> Table:
    """What each case lost, and what was allowed."""
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


def _gate_rows(case: Any, with_reference: bool) -> list[tuple[Cell, ...]]:
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
