"""The whole walk from a bundle to an engine: calibrate, convert, judge, fall back, build, store."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

import onnx

from masksam_deploy.base.errors import EngineError, GateError
from masksam_deploy.base.temporaries import BUILDING, Temporary, abandoned_in, clean, remove_any, speaking_of
from masksam_deploy.base.version import __version__
from masksam_deploy.bundle.directory import Bundle, reporting_writes
from masksam_deploy.bundle.rules import ENGINES_DIRECTORY
from masksam_deploy.engines.build_report import built_report, calibration_report, gate_report, options_report
from masksam_deploy.engines.calibration import MOST_WINDOWS, CalibrationWindows, calibration_windows
from masksam_deploy.engines.device_gate import judge_on_device, runs_here
from masksam_deploy.engines.gate import Case, Gate, Limits, Verdict, limits_of
from masksam_deploy.engines.quantisation import Calibrator
from masksam_deploy.engines.store import Engine, EngineRecord, key_of, read_engine, store_engine
from masksam_deploy.engines.typed_graphs import TypedGraph, TypedGraphs
from masksam_deploy.io.cases import ScanFiles
from masksam_deploy.runtimes import GraphChain, onnxruntime_opener, open_stages
from masksam_deploy.runtimes.onnxruntime import runtime_version
from masksam_deploy.runtimes.registry import Builder, BuildOptions, BuiltEngine
from masksam_deploy.runtimes.spec import EngineSpec, Precision

Progress: TypeAlias = Callable[[str, int, int], None]

FEWEST_WINDOWS: dict[Precision, int] = {"fp32": 0, "fp16": 1, "bf16": 0, "int8": 8}
"""Of calibration, below which a precision's ranges mean nothing."""


@dataclass(frozen=True)
class BuildRequest:
    """All that is chosen about one engine.

    Attributes:
        spec: target and precision of each graph.
        options: for the builder.
        calibration: scans on which ranges are measured; for anything but int8 the validation scans will do.
        windows: of the calibration scans, at most.
        validation: scans that the gate judges by; None switches the gate off, which the engine's record says.
        max_mean_loss: what the gate allows; by default what the smallest precision of what is judged is allowed.
        max_class_loss: the same for a class.
        calibrator: how int8 ranges are chosen.
        excluded: graph -> nodes that stay out of int8.
        strict: whether a graph that the gate refuses fails the build instead of falling back.
        threads: for the network; by default all cores.
        command: that makes the engine again, for its record.
    """

    spec: EngineSpec
    options: BuildOptions = field(default_factory=BuildOptions)
    calibration: Sequence[ScanFiles] = ()
    windows: int = MOST_WINDOWS
    validation: Sequence[Case] | None = ()
    max_mean_loss: float | None = None
    max_class_loss: float | None = None
    calibrator: Calibrator = "percentile"
    excluded: Mapping[str, list[str]] = field(default_factory=dict)
    strict: bool = False
    threads: int | None = None
    command: str = ""

    def limits(self, precisions: Mapping[str, Precision]) -> Limits:
        """What the gate allows these precisions to lose."""
        return limits_of(precisions, self.max_mean_loss, self.max_class_loss)


@dataclass(frozen=True)
class Attempt:
    """One set of precisions and what the gate said of it."""

    precisions: Mapping[str, Precision]
    verdict: Verdict


@dataclass(frozen=True)
class BuildResult:
    """A finished engine.

    Attributes:
        engine: in the store.
        attempts: every judgement of all graphs together, the accepted one last; empty without a gate.
        built: what the builder said of each graph.
    """

    engine: Engine
    attempts: tuple[Attempt, ...]
    built: Mapping[str, BuiltEngine]


def build_engine(
    bundle: Bundle, builder: Builder, request: BuildRequest, progress: Progress | None = None
) -> BuildResult:
    """Build an engine and put it into the bundle's store.

    Args:
        bundle: verified.
        builder: of the spec's target.
        request: what to build.
        progress: told what is being done.

    Raises:
        GateError: too much Dice would be lost, and falling back was not allowed or left nothing to build.
        EngineError: it cannot be built as asked.
        ScanError: a calibration or validation scan is of no use.
        OutputError: the store cannot be written.
        BackendError, MissingDependencyError: the runtime is not available.
    """
    if request.spec.is_the_bundle_itself:
        raise EngineError(
            "found float32 for every graph in ONNX Runtime, expected a smaller precision: that is the bundle as it "
            "is, and 'infer --precision fp32' runs it"
        )
    builder.check(request.options)
    on_device = runs_here(builder, request.options)
    with _staging(bundle.path / ENGINES_DIRECTORY) as staging:
        windows = _calibration(bundle, request)
        gate = _gate(bundle, request, progress)
        typed_folder = staging / "typed"
        typed_folder.mkdir()
        made = _converted(bundle, typed_folder, windows, gate, request, progress)
        built = {
            name: builder.build(
                graph.path,
                staging / f"{name}{builder.suffix}",
                made.precisions[name],
                request.options,
                _named(progress, f"building {name}"),
            )
            for name, graph in made.graphs.items()
        }
        shutil.rmtree(typed_folder)
        record = _record(bundle, builder, request, windows, gate, made, built)
        if gate and on_device:
            verdict = _judged_on_device(bundle, Engine(staging, record), gate, request)
            record = record.model_copy(update={"gate": gate_report(gate, windows, request, made.attempts, verdict)})
        return BuildResult(store_engine(staging, bundle, record), made.attempts, built)


@dataclass(frozen=True)
class _Converted:
    """Graphs in smaller precisions.

    Attributes:
        graphs, precisions: by name.
        attempts: what the gate said, of the last one these are.
    """

    graphs: dict[str, TypedGraph]
    precisions: Mapping[str, Precision]
    attempts: tuple[Attempt, ...]


def _converted(
    bundle: Bundle,
    folder: Path,
    windows: CalibrationWindows | None,
    gate: Gate | None,
    request: BuildRequest,
    progress: Progress | None,
) -> _Converted:
    """The graphs in the precisions that were asked for, or that the gate let pass."""
    with TypedGraphs(
        bundle,
        folder,
        windows,
        calibrator=request.calibrator,
        excluded=request.excluded,
        rest=request.spec.rest,
        simulated=request.spec.on_gpu,
        threads=request.threads,
        progress=progress,
    ) as graphs:
        attempts = _judged(gate, graphs, request) if gate else []
        precisions = attempts[-1].precisions if attempts else request.spec.precisions
        typed = {name: graphs.get(name, precision) for name, precision in precisions.items()}
        return _Converted(typed, precisions, tuple(attempts))


def _record(
    bundle: Bundle,
    builder: Builder,
    request: BuildRequest,
    windows: CalibrationWindows | None,
    gate: Gate | None,
    made: _Converted,
    built: Mapping[str, BuiltEngine],
) -> EngineRecord:
    """What is stored of an engine, its files and the verdict of a device left out."""
    return EngineRecord(
        bundle_sha256=bundle.sha256,
        target=request.spec.target,
        precisions=dict(made.precisions),
        asked=dict(request.spec.precisions),
        machine=builder.facts(request.options),
        options=options_report(request.options),
        graphs={name: engine.file.name for name, engine in built.items()},
        gate=gate_report(gate, windows, request, made.attempts, None),
        provenance={
            "calibration": calibration_report(windows, request),
            "graphs": {name: graph.to_dict() for name, graph in made.graphs.items()},
            "built": {name: built_report(engine) for name, engine in built.items()},
            "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tools": {
                "masksam-deploy": __version__,
                "onnx": onnx.__version__,
                "onnxruntime": runtime_version(),
                "python": platform.python_version(),
            },
            "command": request.command,
        },
        files={},
    )


def _judged_on_device(bundle: Bundle, engine: Engine, gate: Gate, request: BuildRequest) -> Verdict:
    """The gate's verdict on the built engine.

    Raises:
        GateError: it loses more Dice than is allowed.
    """
    precisions = engine.record.precisions
    verdict = judge_on_device(bundle, engine, gate, request.limits(precisions))
    if not verdict.passed:
        raise GateError(
            f"on the device, {attempt_summary(Attempt(precisions, verdict))}, though the same graphs pass in ONNX "
            "Runtime; build in a larger precision, and report this with what 'masksam-deploy doctor' prints"
        )
    return verdict


_REPLACED = ".replaced"
"""Ends the name of an engine that `store_engine` sets aside."""
_UNLOCKED = re.compile(rf"{re.escape(BUILDING)}(unlocked-[0-9a-f]{{16}}|[0-9a-f]{{12}})({re.escape(_REPLACED)})?")
"""Folders of builds that no lock tells the end of: where locks do not work, and of version 0.1."""
_ABANDONED_SECONDS = 24 * 3600
"""Nothing is written to such a folder for so long: then it is abandoned. No step of a build takes as long."""


@contextmanager
def _staging(store: Path) -> Iterator[Path]:
    """A new folder in the store, gone afterwards unless it became an engine."""
    staging = Temporary(store, BUILDING)
    try:
        with reporting_writes(store):
            store.mkdir(parents=True, exist_ok=True)
            _sweep(store)
            staging.create_folder()
        with speaking_of(staging.path, store):
            yield staging.path
    finally:
        staging.remove()


def _sweep(store: Path) -> None:
    """Put engines back that killed builds had set aside, and remove what else such builds left."""
    for folder in abandoned_in(store, BUILDING, _REPLACED):
        with suppress(EngineError, OSError):
            engine = store / key_of(read_engine(folder).record)
            if not os.path.lexists(engine):
                folder.rename(engine)
        remove_any(folder)
    clean(store)
    for folder in store.glob(f"{BUILDING}*"):
        if _UNLOCKED.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir():
            with suppress(FileNotFoundError):  # its build has just ended
                latest = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - latest > _ABANDONED_SECONDS:
                    remove_any(folder)


def open_typed(
    bundle: Bundle, files: Mapping[str, Path], precisions: Mapping[str, str], threads: int | None
) -> GraphChain:
    """Typed graphs in ONNX Runtime on the CPU."""
    return open_stages(bundle, files, onnxruntime_opener(threads=threads), precisions)


def _calibration(bundle: Bundle, request: BuildRequest) -> CalibrationWindows | None:
    """Windows to measure ranges on; None if no precision needs any, or there are no scans and int8 is not asked for."""
    fewest = max(FEWEST_WINDOWS[precision] for precision in request.spec.precisions.values())
    scans = list(request.calibration)
    if not scans and "int8" not in request.spec.precisions.values():
        scans = [case.scan for case in request.validation or ()]
    if not fewest or not scans:
        return None
    return calibration_windows(bundle, scans, most=request.windows, fewest=fewest)


def _gate(bundle: Bundle, request: BuildRequest, progress: Progress | None) -> Gate | None:
    """What judges; None if it is switched off."""
    if request.validation is None:
        return None
    return Gate(bundle, request.validation, threads=request.threads, progress=progress)


def _judged(gate: Gate, graphs: TypedGraphs, request: BuildRequest) -> list[Attempt]:
    """Judge; while it fails, let the graph that costs most fall back.

    Raises:
        GateError: nothing is left that passes, or falling back was not allowed.
    """

    def judge(precisions: Mapping[str, Precision]) -> Verdict:
        files = {name: graphs.get(name, precision).judged for name, precision in precisions.items()}
        title = ", ".join(f"{name} {precision}" for name, precision in precisions.items())
        return gate.judge(
            open_typed(gate.bundle, files, precisions, request.threads), request.limits(precisions), title
        )

    precisions = dict(request.spec.precisions)
    attempts: list[Attempt] = []
    while True:
        attempts.append(Attempt(dict(precisions), judge(precisions)))
        if attempts[-1].verdict.passed:
            return attempts
        if request.strict:
            raise GateError(f"{attempt_summary(attempts[-1])}; leave --strict out to let the graph at fault fall back")
        lowered = [name for name, precision in precisions.items() if precision != "fp32"]
        fault = lowered[0] if len(lowered) == 1 else max(lowered, key=lambda name: _alone(judge, precisions, name))
        larger = request.spec.fallback(precisions[fault])
        if larger is None or (request.spec.target == "onnxruntime" and lowered == [fault] and larger == "fp32"):
            raise GateError(
                f"{attempt_summary(attempts[0])}, and no graph passes in less than float32; run the bundle as it is, "
                "or calibrate on more scans"
            )
        precisions[fault] = larger


def attempt_summary(attempt: Attempt) -> str:
    """One line: the Dice that an attempt lost, and the loss that is allowed."""
    verdict = attempt.verdict
    name, loss = verdict.worst_class
    case, _, worst = verdict.worst_case
    precisions = ", ".join(f"{graph} {precision}" for graph, precision in attempt.precisions.items())
    return (
        f"with {precisions} a mean Dice of {verdict.mean_loss:.4f} is lost, {loss:.4f} for '{name}' and {worst:.4f} in "
        f"'{case}', expected at most {verdict.limits.mean:g} and {verdict.limits.worst_class:g} for a class"
    )


def _alone(
    judge: Callable[[Mapping[str, Precision]], Verdict], precisions: Mapping[str, Precision], graph: str
) -> float:
    """What one graph costs when the others are in float32."""
    return judge({name: precision if name == graph else "fp32" for name, precision in precisions.items()}).mean_loss


def _named(progress: Progress | None, what: str) -> Progress:
    """A builder's progress under the graph's name."""

    def tell(detail: str, done: int, total: int) -> None:
        if progress:
            progress(f"{what}: {detail}", done, total)

    return tell
