"""Choosing the engine that runs, and opening it: never a stale one, never another than is said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from masksam_deploy.base.errors import EngineError, MaskSamError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.store import Engine, broken_engines, engines_of
from masksam_deploy.runtimes import Device, Network, onnxruntime_opener, open_chain, open_stages
from masksam_deploy.runtimes.cuda.plan import GpuOptions
from masksam_deploy.runtimes.spec import Precision, Target, label
from masksam_deploy.runtimes.versions import import_rtx, import_tensorrt, onnxruntime_facts, rtx_facts, tensorrt_facts

Backend: TypeAlias = Literal["auto", "onnxruntime", "tensorrt", "rtx"]

_ORDER: dict[Target, int] = {"tensorrt": 0, "rtx": 1, "onnxruntime": 2}
_SPEED: dict[Precision, int] = {"int8": 0, "fp16": 1, "bf16": 1, "fp32": 2}


@dataclass(frozen=True)
class Choice:
    """What will run.

    Attributes:
        engine: from the store; None for the bundle's float32 graphs in ONNX Runtime.
        stale: engines that were right for this machine once -> why they are not, and what to do.
        foreign: engines for other machines -> why.
    """

    engine: Engine | None
    stale: Mapping[str, str]
    foreign: Mapping[str, str]


def machine_for(target: Target, device: Device = "cpu") -> dict[str, str] | None:
    """What this machine is to a target; None if the target cannot run here."""
    try:
        if target == "onnxruntime":
            return onnxruntime_facts(device)
        return tensorrt_facts() if target == "tensorrt" else rtx_facts()
    except MaskSamError:
        return None


def choose_engine(
    bundle: Bundle,
    backend: Backend = "auto",
    precision: Precision | None = None,
    device: Device | None = None,
    *,
    without: Collection[Precision] = (),
    judged: bool = False,
) -> Choice:
    """The best valid engine for this machine.

    Args:
        bundle: verified.
        backend: a target, or `auto` for the best of all.
        precision: as asked for when it was built; None for the best. In ONNX Runtime, fp32 are the bundle's own graphs.
        device: where it must run, if no backend is asked for; None for anywhere, ONNX Runtime on the CPU.
        without: precisions that no graph of it may have.
        judged: whether only engines that passed the Dice gate will do, also where a backend or precision is asked for.

    Raises:
        EngineError: a backend or precision was asked for and there is no valid engine of it; says why each is refused.
    """
    if backend in ("auto", "onnxruntime") and precision == "fp32":
        return Choice(None, {}, {})
    found = _sorted(bundle, _Wanted(backend, precision, device, tuple(without), judged))
    valid = found.valid
    if precision is None:
        valid = [engine for engine in valid if _is_faster(engine, device or "cpu")]
    best = min(valid, key=_rank, default=None)
    if best is not None:
        best.check_files()
        return Choice(best, found.stale, found.foreign)
    if (backend in ("auto", "onnxruntime")) and precision in (None, "fp32"):
        return Choice(None, found.stale, found.foreign)
    raise _no_engine(bundle, backend, precision, found)


@dataclass(frozen=True)
class _Wanted:
    """See `choose_engine`."""

    backend: Backend
    precision: Precision | None
    device: Device | None
    without: tuple[Precision, ...]
    judged: bool

    def names(self, engine: Engine) -> bool:
        """Whether an engine is of the target and precision that were asked for."""
        record = engine.record
        return self.backend in ("auto", record.target) and (
            self.precision is None or label(record.asked) == self.precision
        )

    def takes_unjudged(self) -> bool:
        """Whether an engine may run that no gate has judged: only where it was asked for by name."""
        return not self.judged and (self.precision is not None or self.backend != "auto")


@dataclass
class _Sorted:
    """A bundle's engines: those that may run, and why each other one may not."""

    valid: list[Engine] = field(default_factory=list)
    stale: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)


def _sorted(bundle: Bundle, wanted: _Wanted) -> _Sorted:
    found = _Sorted(stale={folder.name: why for folder, why in broken_engines(bundle).items()})
    machines: dict[Target, dict[str, str] | None] = {}
    for engine in filter(wanted.names, engines_of(bundle)):
        name, target = engine.folder.name, engine.record.target
        why = _ruled_out(engine, wanted.backend, wanted.device, wanted.without)
        if why:
            found.excluded[name] = why
            continue
        if target not in machines:
            machines[target] = machine_for(target, wanted.device or "cpu")
        problem = engine.problem(bundle, machines[target])
        if problem is None and not engine.judged and not wanted.takes_unjudged():
            found.stale[name] = "nothing shows that it is right (--no-gate); name its --precision to use it"
        elif problem is None:
            found.valid.append(engine)
        elif problem.stale:
            found.stale[name] = f"{problem.reason}; build it again: {engine.rebuild}"
        else:
            found.foreign[name] = problem.reason
    return found


def _no_engine(bundle: Bundle, backend: Backend, precision: Precision | None, found: _Sorted) -> EngineError:
    wanted = " ".join(filter(None, (None if backend == "auto" else backend, precision)))
    reasons = "".join(f"; {name}: {why}" for name, why in (found.stale | found.foreign | found.excluded).items())
    flags = " ".join(filter(None, (f"--{precision or 'fp16'}", f"--target {backend}" if backend != "auto" else "")))
    return EngineError(
        f"{bundle.path}: found no {wanted} engine that is valid here, expected one{reasons}; build one: masksam-deploy "
        f"build-engine {bundle.path} {flags}"
    )


@dataclass(frozen=True)
class EngineState:
    """One folder of a bundle's store.

    Attributes:
        name: of the folder.
        title: target and precision; empty if the record cannot be read.
        judged: whether the Dice gate let it pass.
        problem: why it must not be used here; None if it may.
    """

    name: str
    title: str
    judged: bool
    problem: str | None


def engine_states(bundle: Bundle, device: Device = "cpu") -> list[EngineState]:
    """Every engine of a bundle and whether it is valid on this machine, its files hashed."""
    states = [EngineState(folder.name, "", False, why) for folder, why in broken_engines(bundle).items()]
    machines: dict[Target, dict[str, str] | None] = {}
    for engine in engines_of(bundle):
        target = engine.record.target
        if target not in machines:
            machines[target] = machine_for(target, device)
        problem = engine.problem(bundle, machines[target])
        reason = None if problem is None else problem.reason
        if problem is None:
            try:
                engine.check_files()
            except EngineError as error:
                reason = str(error)
        elif problem.stale:
            reason = f"{reason}; build it again: {engine.rebuild}"
        states.append(EngineState(engine.folder.name, engine.title, engine.judged, reason))
    return states


def open_engine(
    bundle: Bundle,
    engine: Engine,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    gpu: GpuOptions | None = None,
) -> Network:
    """Load an engine whose files were checked.

    Args:
        bundle: that it is of.
        engine: from its store.
        device: for engines of ONNX Runtime.
        threads: for engines of ONNX Runtime.
        gpu: for engines of TensorRT and TensorRT for RTX.

    Raises:
        BackendError: it does not load.
        MemoryLimitError: it needs more GPU memory than `gpu` allows.
        MissingDependencyError: what runs it is not installed.
    """
    files = {name: engine.path(name) for name in engine.record.graphs}
    if engine.record.target != "onnxruntime":
        return _open_on_gpu(bundle, engine, files, gpu or GpuOptions())
    return open_stages(
        bundle,
        files,
        onnxruntime_opener(device, threads),
        engine.record.precisions,
        engine.folder.name,
    )


def _open_on_gpu(bundle: Bundle, engine: Engine, files: Mapping[str, Path], gpu: GpuOptions) -> Network:
    from masksam_deploy.runtimes.tensorrt.chain import EngineFiles, TensorRTChain

    record = engine.record
    trt, name = (import_rtx(), "TensorRT for RTX") if record.target == "rtx" else (import_tensorrt(), "TensorRT")
    return TensorRTChain(
        trt,
        bundle.manifest.graphs,
        EngineFiles(
            runtime=f"{name} {trt.__version__}",
            paths=files,
            hashes={graph: record.files[file].sha256 for graph, file in record.graphs.items()},
            precisions=record.precisions,
            name=engine.folder.name,
            rebuild=engine.rebuild,
            host_code=bool(record.options.get("version_compatible")),
            kernels=engine.folder if gpu.keep_kernels else None,
        ),
        gpu,
    )


def open_network(
    bundle: Bundle,
    backend: Backend = "auto",
    precision: Precision | None = None,
    *,
    device: Device | None = None,
    threads: int | None = None,
    max_vram: int | None = None,
    without: Collection[Precision] = (),
    judged: bool = False,
) -> tuple[Network, Choice]:
    """Choose and open what runs; see `choose_engine` and `open_engine`.

    Raises:
        EngineError: `max_vram` is given, and what is chosen runs in ONNX Runtime, which knows no such limit.
    """
    choice = choose_engine(bundle, backend, precision, device, without=without, judged=judged)
    if max_vram is not None and (choice.engine is None or choice.engine.record.target == "onnxruntime"):
        raise EngineError(
            "--max-vram: found no engine of TensorRT that is valid here, expected one, since ONNX Runtime keeps to no "
            "such limit; build one with 'masksam-deploy build-engine', or leave --max-vram out"
        )
    if choice.engine is None:
        return open_chain(bundle, device=device or "cpu", threads=threads), choice
    gpu = GpuOptions(max_vram=max_vram)
    return open_engine(bundle, choice.engine, device=device or "cpu", threads=threads, gpu=gpu), choice


def _ruled_out(engine: Engine, backend: Backend, device: Device | None, without: Collection[Precision]) -> str | None:
    """Why an engine is not what was asked for, though it may be valid."""
    if backend == "auto" and device == "cpu" and engine.record.target != "onnxruntime":
        return "it runs on a GPU, and the CPU was asked for"
    out = set(without) & set(engine.record.precisions.values())
    return f"it is in {', '.join(sorted(out))}, which was ruled out, as by the profile" if out else None


def _is_faster(engine: Engine, device: Device) -> bool:
    """Whether it can be faster than the bundle's own graphs: a CPU gains nothing from half precision."""
    return engine.record.target != "onnxruntime" or device != "cpu" or "int8" in engine.record.precisions.values()


def _rank(engine: Engine) -> tuple[int, int, str]:
    record = engine.record
    return (
        _ORDER[record.target],
        sum(_SPEED[precision] for precision in record.precisions.values()),
        engine.folder.name,
    )
