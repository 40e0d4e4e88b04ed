"""What one segmentation was: the labels found, how, with what, and how long it took."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from masksam_deploy.base.version import __version__
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.manifest import Labels

_Item = TypeVar("_Item")


class _End:
    """Comes after the last item of an iterator."""


_END = _End()


@dataclass(frozen=True)
class LabelVolume:
    """One label of a result, also when it was not found."""

    value: int
    name: str
    voxels: int
    volume_ml: float


@dataclass
class Report:
    """Everything about one run, for people and machines.

    Attributes:
        bundle: its name, the SHA-256 of its manifest (which names every byte of it) and of its checkpoint.
        scan: geometry of the scan, LPS, and of the network's grid.
        settings: what was chosen, and what ran each graph.
        labels: in the order of the bundle's classes.
        timings_s: seconds per stage.
        versions: of the software that took part.
        files: inputs and outputs with their SHA-256, filled by the command line.
        warnings: what a reader of the label map should know though the scan was accepted, one sentence each.
    """

    bundle: dict[str, Any]
    scan: dict[str, Any]
    settings: dict[str, Any]
    labels: list[LabelVolume]
    timings_s: dict[str, float]
    versions: dict[str, str]
    files: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    schema_version: str = "1.0"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


class Stopwatch:
    """Sums seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def iterate(self, name: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """Time how long the items take to come, not what is done with them."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            item = next(iterator, _END)
            self.add(name, time.perf_counter() - started)
            if isinstance(item, _End):
                return
            yield item

    def add(self, name: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def rounded(self) -> dict[str, float]:
        """Seconds by stage, to the millisecond."""
        return {name: round(value, 3) for name, value in self.seconds.items()}


def measure_labels(result: Volume, labels: Labels) -> list[LabelVolume]:
    """Count voxels and millilitres of every label value; 0 (background) only if it is a class."""
    names = label_names(labels)
    counts = np.zeros(max(names) + 1, np.int64)
    for plane in result.array:  # plane by plane: counting turns its input into 64-bit integers
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    voxel = result.geometry.voxel_volume_ml
    return [
        LabelVolume(value, name, int(counts[value]), round(int(counts[value]) * voxel, 6))
        for value, name in names.items()
    ]


def label_names(labels: Labels) -> dict[int, str]:
    """What each value of a label map means, in the order of the classes.

    Regions overlap and paint over one another: a value then stands for what no later region covers, and regions
    that paint the same value cannot be told apart.
    """
    by_value: dict[int, list[str]] = {}
    for label in labels.classes:
        by_value.setdefault(label.value, []).append(label.name)
    names = {value: " or ".join(found) for value, found in by_value.items()}
    if labels.decision == "regions":
        last = labels.classes[-1].value
        names = {value: name if value == last else f"{name} (rest)" for value, name in names.items()}
    return names


def runtime_versions() -> dict[str, str]:
    """Python and the packages that decide the result."""
    import SimpleITK

    from masksam_deploy.runtimes.onnxruntime import runtime_version

    return {
        "masksam-deploy": __version__,
        "onnxruntime": runtime_version(),
        "numpy": np.__version__,
        "SimpleITK": SimpleITK.Version_VersionString(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
