"""What takes part in a benchmark: ways to run a bundle, and the network in the framework that it was trained in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast

from masksam_deploy.base.errors import BenchError, EngineError, MissingDependencyError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bench.check import WINDOW_LIMITS
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.choose import choose_engine, machine_for, open_engine
from masksam_deploy.engines.store import Engine, engines_of
from masksam_deploy.runtimes import Device, Network, open_chain
from masksam_deploy.runtimes.spec import PRECISIONS, TARGETS, Precision, Target

BASELINES = "masksam_deploy.baselines"
"""Entry-point group through which the torch side offers the network as it was trained."""

BaselineMode: TypeAlias = Literal["eager", "amp", "compile"]


class OpenBaseline(Protocol):
    """What the entry point `torch` of the group is."""

    def __call__(
        self, checkpoint: Path, bundle: Bundle, mode: BaselineMode, *, device: Device, threads: int | None
    ) -> Network:
        """The network of a checkpoint as a chain of one stage."""


@dataclass(frozen=True)
class Contender:
    """One way to run the network.

    Attributes:
        name: unique among those measured together.
        precision: by which it is judged: of several, the one that may lose most.
        device: where it runs.
        open: loads it.
        fresh: how a fresh process opens it (arguments of `open_fresh`), or None if it cannot.
    """

    name: str
    precision: Precision
    device: Device
    open: Callable[[], Network]
    fresh: dict[str, str] | None = None


def bundle_contender(
    bundle: Bundle, target: Target, precision: Precision, *, device: Device = "cpu", threads: int | None = None
) -> Contender:
    """A backend and the precision that was asked of it; the engine must be in the bundle's store.

    Raises:
        EngineError: there is no valid engine of it.
    """
    engine = choose_engine(bundle, target, precision, device).engine  # better missing now than after minutes
    return _of_engine(bundle, engine, device, threads) if engine else _of_graphs(bundle, device, threads)


def valid_contenders(bundle: Bundle, *, device: Device = "cpu", threads: int | None = None) -> list[Contender]:
    """The bundle's float32 graphs, and of the engines that are valid here one of each backend and precisions."""
    found = [_of_graphs(bundle, device, threads)]
    for engine in engines_of(bundle):
        if engine.problem(bundle, machine_for(engine.record.target, device)) is None:
            contender = _of_engine(bundle, engine, device, threads)
            if contender.name not in {other.name for other in found}:
                found.append(contender)
    return found


def _of_graphs(bundle: Bundle, device: Device, threads: int | None) -> Contender:
    return Contender(
        _name("onnxruntime", "fp32", device),
        "fp32",
        device,
        lambda: open_chain(bundle, device=device, threads=threads),
        {"kind": "graphs"},
    )


def _of_engine(bundle: Bundle, engine: Engine, device: Device, threads: int | None) -> Contender:
    """Named and judged by what was built, which may be less than what was asked for."""
    built = engine.record.precisions
    return Contender(
        _name(engine.record.target, _in_short(built), device),
        max(built.values(), key=lambda precision: WINDOW_LIMITS[precision].score_error),
        device,
        lambda: _open(bundle, engine, device, threads),
        {"kind": "engine", "folder": engine.folder.name},
    )


def _open(bundle: Bundle, engine: Engine, device: Device, threads: int | None) -> Network:
    engine.check_files()
    return open_engine(bundle, engine, device=device, threads=threads)


def _in_short(built: Mapping[str, Precision]) -> str:
    """The precision of most graphs, and those that differ: `int8, decoder fp16`."""
    most = Counter(built.values()).most_common(1)[0][0]
    return ", ".join([most, *(f"{graph} {precision}" for graph, precision in built.items() if precision != most)])


def parse_run(text: str) -> tuple[Target, Precision]:
    """`onnxruntime:int8` -> its parts.

    Raises:
        BenchError: not a backend and a precision.
    """
    target, _, precision = text.partition(":")
    if target not in TARGETS or precision not in PRECISIONS:
        raise BenchError(
            f"found run '{one_line(text, 60)}', expected BACKEND:PRECISION with {', '.join(TARGETS)} and "
            f"{', '.join(PRECISIONS)}, such as onnxruntime:int8"
        )
    return target, precision


def baseline_contender(
    checkpoint: Path, bundle: Bundle, mode: BaselineMode, *, device: Device = "cpu", threads: int | None = None
) -> Contender:
    """The checkpoint that the bundle was exported from, in PyTorch.

    Raises:
        MissingDependencyError: the torch side is not installed.
    """
    opened = baseline_opener()
    return Contender(
        f"pytorch {mode}" + ("" if device == "cpu" else f" {device}"),
        "fp16" if mode == "amp" else "fp32",
        device,
        lambda: opened(checkpoint, bundle, mode, device=device, threads=threads),
        {"kind": "baseline", "checkpoint": str(checkpoint), "mode": mode},
    )


def open_fresh(
    bundle: Bundle, description: dict[str, str], *, device: Device = "cpu", threads: int | None = None
) -> Network:
    """Open what `Contender.fresh` describes, in another process than where it was written.

    Raises:
        EngineError: the engine is gone, or is not valid any more.
    """
    if description["kind"] == "graphs":
        return open_chain(bundle, device=device, threads=threads)
    if description["kind"] == "baseline":
        mode = cast("BaselineMode", description["mode"])
        return baseline_opener()(Path(description["checkpoint"]), bundle, mode, device=device, threads=threads)
    engine = next((engine for engine in engines_of(bundle) if engine.folder.name == description["folder"]), None)
    if engine is None:
        raise EngineError(f"{shown(bundle.path)}: found no engine {description['folder']}, expected it; measure again")
    return _open(bundle, engine, device, threads)


def baseline_opener() -> OpenBaseline:
    """What opens the network in PyTorch.

    Raises:
        MissingDependencyError: the torch side is not installed.
    """
    for point in entry_points(group=BASELINES, name="torch"):
        try:
            return cast("OpenBaseline", point.load())
        except ImportError as error:
            raise MissingDependencyError(error.name or "torch", "export", "measuring PyTorch") from error
    raise MissingDependencyError("masksam_export", "export", "measuring PyTorch")


def check_names(contenders: Sequence[Contender]) -> None:
    """Refuse two contenders of the same name.

    Raises:
        BenchError: names the first one.
    """
    names = [contender.name for contender in contenders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BenchError(f"found {twice} twice, expected every contender once; leave one out")
    if not names:
        raise BenchError("found nothing to measure, expected at least one contender; name some with --run")


def _name(target: str, precision: str, device: Device) -> str:
    return f"{target} {precision}" + (f" {device}" if target == "onnxruntime" and device != "cpu" else "")
