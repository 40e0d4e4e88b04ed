"""What every builder of engines offers, and the rules that all of them keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol, TypeAlias

from masksam_deploy.base.errors import EngineError
from masksam_deploy.runtimes.spec import Precision, Target

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called about five times a second with what is being done, and how much of it is done and to do (0: unknown)."""
TypeCounts: TypeAlias = Mapping[str, int]
"""Type (`fp32`, `int8` …) -> how many operations work on it."""

# What a graph of a precision may hold. It must hold some of its own.
_ALLOWED: dict[Precision, frozenset[str]] = {
    "fp32": frozenset({"fp32"}),
    "fp16": frozenset({"fp16", "fp32"}),
    "bf16": frozenset({"bf16", "fp32"}),
    "int8": frozenset({"int8", "fp16", "bf16", "fp32"}),
}
_FLAGS = {"batches": "--batches", "workspace_bytes": "--workspace", "gpus": "--gpu"}


@dataclass(frozen=True)
class BuildOptions:
    """How to build. A builder refuses what its runtime does not have (`Builder.check`)."""

    batches: tuple[int, int, int] = (1, 1, 2)
    """Smallest, best and largest number of windows at once: the graphs' one dynamic dimension `B`."""
    workspace_bytes: int | None = None
    """GPU memory that a layer may use while it runs; None: all there is."""
    hardware_compatible: bool = False
    """TensorRT: an engine for every GPU from Ampere on, somewhat slower."""
    version_compatible: bool = False
    """TensorRT: an engine of 10.x that 11.x runs too."""
    strip_weights: bool = False
    """An engine without weights, which come from the graph when it is loaded."""
    timing_cache: Path | None = None
    """TensorRT: measurements to start from and to add to; made if absent."""
    optimization_level: int | None = None
    """TensorRT: 0 (fast to build) to 5 (tries most); None: TensorRT's own default, 3."""
    gpus: tuple[str, ...] = ()
    """TensorRT for RTX: the GPUs to build for (`sm86` …); empty: the GPU of this machine."""


@dataclass(frozen=True)
class BuiltEngine:
    """One graph, built, and what is in it."""

    file: Path
    seconds: float
    bytes: int
    precision_in_graph: TypeCounts
    """Operators per type as the runtime itself understood the graph: matrix products and convolutions for TensorRT and
    TensorRT for RTX, all for ONNX Runtime."""
    precision_found: TypeCounts | None
    """Layers per type as the runtime reports them of the engine; None if they cannot be read back here."""
    not_read_back: str | None
    """Why `precision_found` is None."""
    facts: Mapping[str, str]
    """What the engine depends on: `Builder.facts`."""
    notes: tuple[str, ...] = field(default=())
    """What a person should know: an ignored timing cache, a precision that this processor does not speed up …"""


class Builder(Protocol):
    """Builds engines for one target."""

    @property
    def target(self) -> Target:
        """Its name."""

    @property
    def suffix(self) -> str:
        """What the names of its files end in."""

    def facts(self, options: BuildOptions) -> dict[str, str]:
        """What engines built now depend on: versions, GPU, driver.

        Raises:
            MissingDependencyError, BackendError: the runtime is not installed, or does not load.
        """

    def check(self, options: BuildOptions) -> None:
        """Refuse at once what could not be built, before minutes of work.

        Raises:
            MissingDependencyError, BackendError: the runtime is not installed, or does not load.
            EngineError: there is no GPU for it, or an option is not for this target or version.
        """

    def build(
        self, graph: Path, output: Path, precision: Precision, options: BuildOptions, progress: Progress
    ) -> BuiltEngine:
        """Build one typed ONNX file; `output` appears complete or not at all.

        An exception from `progress` (or Ctrl-C) stops the build.

        Raises:
            EngineError: the runtime refuses the graph, or what it made is not in the precision asked for.
            OutputError: the file cannot be written.
        """


def check_graph_precision(found: TypeCounts, precision: Precision, what: str) -> None:
    """Refuse a graph that is not what its name will say.

    Raises:
        EngineError: nothing of it is in `precision`, or something is in a type that does not belong there.
    """
    counted = f"operators: {_counted(found)}"
    if not found.get(precision):
        raise EngineError(
            f"{what}: found {counted}, expected some in {precision}; convert the graph to {precision} first, or "
            "build it in the precision that it has"
        )
    strangers = sorted(name for name, count in found.items() if count and name not in _ALLOWED[precision])
    if strangers:
        raise EngineError(
            f"{what}: found {counted}, expected only {' and '.join(sorted(_ALLOWED[precision]))} under the name "
            f"{precision}; build it as {strangers[0]}"
        )


def check_engine_precision(found: TypeCounts, precision: Precision, what: str) -> None:
    """Refuse an engine that silently fell back to another precision.

    Only that some layers have the precision is asked: runtimes name the types of index arithmetic loosely.

    Raises:
        EngineError: no layer works in `precision`.
    """
    if not found.get(precision):
        raise EngineError(
            f"{what}: found layers: {_counted(found)}, expected some in {precision}; do not use it: build the graph in "
            "another precision, and report this with the versions that 'masksam-deploy doctor' prints"
        )


def check_common(options: BuildOptions) -> None:
    """Rules that hold for every target.

    Raises:
        EngineError: numbers that no runtime could take.
    """
    smallest, best, largest = options.batches
    if not 1 <= smallest <= best <= largest:
        raise EngineError(
            f"--batches: found {smallest},{best},{largest}, expected smallest <= best <= largest, from 1 on; correct it"
        )
    if options.workspace_bytes is not None and options.workspace_bytes < 1:
        raise EngineError(f"--workspace: found {options.workspace_bytes} bytes, expected some, e.g. 2G")
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        raise EngineError(f"--optimization-level: found {options.optimization_level}, expected 0 to 5; correct it")


def refuse(options: BuildOptions, target: Target, reasons: Mapping[str, str]) -> None:
    """Refuse options (by field name) that a target does not have.

    Raises:
        EngineError: one of them was given.
    """
    for option in fields(options):
        if option.name in reasons and getattr(options, option.name) != option.default:
            flag = _FLAGS.get(option.name, f"--{option.name.replace('_', '-')}")
            raise EngineError(f"{flag} cannot be used with target '{target}': {reasons[option.name]}; leave it out")


def _counted(found: TypeCounts) -> str:
    listed = ", ".join(f"{count} in {name}" for name, count in sorted(found.items()) if count)
    return listed or "none at all"
