"""What takes part in a benchmark: ways to run a bundle, and the network in the framework that it was trained in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast

from masksam_deploy.backends import Device, Network
from masksam_deploy.bench.results import BenchError
from masksam_deploy.bundle import Bundle
from masksam_deploy.engines.run import choose_engine, machine_for, open_network
from masksam_deploy.engines.spec import PRECISIONS, TARGETS, Precision, Target, label
from masksam_deploy.engines.store import engines_of
from masksam_deploy.errors import MissingDependencyError
from masksam_deploy.text import one_line

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
        precision: by which it is judged.
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
    """A backend and precision; the engine must be in the bundle's store.

    Raises:
        EngineError: there is no valid engine of it.
    """
    choose_engine(bundle, target, precision, device)  # better missing now than after minutes of measuring
    fresh = {"kind": "bundle", "target": target, "precision": precision}
    return Contender(
        _name(target, precision, device),
        precision,
        device,
        lambda: open_network(bundle, target, precision, device=device, threads=threads)[0],
        fresh,
    )


def valid_contenders(bundle: Bundle, *, device: Device = "cpu", threads: int | None = None) -> list[Contender]:
    """The bundle's float32 graphs, and one engine of each backend and precision that is valid here."""
    found: list[tuple[Target, Precision]] = [("onnxruntime", "fp32")]
    for engine in engines_of(bundle):
        asked = label(engine.record.asked)
        pair = (engine.record.target, cast("Precision", asked))
        if asked in PRECISIONS and pair not in found and engine.problem(bundle, machine_for(pair[0], device)) is None:
            found.append(pair)
    return [bundle_contender(bundle, *pair, device=device, threads=threads) for pair in found]


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
    """Open what `Contender.fresh` describes, in another process than where it was written."""
    if description["kind"] == "baseline":
        mode = cast("BaselineMode", description["mode"])
        return baseline_opener()(Path(description["checkpoint"]), bundle, mode, device=device, threads=threads)
    target, precision = cast("Target", description["target"]), cast("Precision", description["precision"])
    return open_network(bundle, target, precision, device=device, threads=threads)[0]


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
