"""A bundle's graphs in the precisions that are asked for: measured, protected, converted, written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import onnx

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.text import shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.calibration import CalibrationWindows, GraphFeeds, Progress, Window
from masksam_deploy.engines.graph_types import GraphIndex, load_model, save_model
from masksam_deploy.engines.precision import lower_precision, simulate_precision
from masksam_deploy.engines.protection import protected_by_range, protected_by_structure
from masksam_deploy.engines.quantisation import Calibrator, activation_ranges, quantisable, quantise
from masksam_deploy.engines.ranges import measure_ranges
from masksam_deploy.runtimes.spec import Precision


@dataclass
class TypedGraph:
    """One graph in one precision.

    Attributes:
        path: the ONNX file.
        judged: what the gate runs in its place: the same, or the same with every half-precision value really rounded.
        protected: nodes in float32 -> why.
        ranges: largest magnitude of every computed tensor; empty if nothing was measured.
        quantised: nodes in int8.
        excluded: nodes that could have been, but are not.
    """

    path: Path
    judged: Path
    protected: dict[str, str]
    ranges: dict[str, float] = field(default_factory=dict)
    quantised: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For the engine's record."""
        return {
            "protected": dict(sorted(self.protected.items())),
            "ranges": {name: value if isfinite(value) else None for name, value in sorted(self.ranges.items())},
            "quantised": sorted(self.quantised),
            "excluded_from_int8": sorted(self.excluded),
        }


class TypedGraphs:
    """Makes typed graphs on demand, each once.

    Use it as a context manager.

    Args:
        bundle: whose float32 graphs are converted.
        folder: where the typed graphs are written.
        windows: of calibration scans; None leaves the ranges unmeasured, and int8 impossible.
        calibrator: how int8 ranges are chosen.
        excluded: graph -> nodes that stay out of int8.
        rest: precision of what is not int8 in an int8 graph.
        simulated: whether half precision is judged by a simulation, because another runtime will compute it.
        threads: for the network; by default all cores.
        progress: told about every network run.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        windows: CalibrationWindows | None,
        *,
        calibrator: Calibrator = "percentile",
        excluded: Mapping[str, list[str]] | None = None,
        rest: Precision = "fp32",
        simulated: bool = False,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.bundle = bundle
        self.windows = windows
        self._folder = folder
        self._calibrator: Calibrator = calibrator
        self._excluded = excluded or {}
        known = [graph.name for graph in bundle.manifest.graphs]
        if unknown := sorted(set(self._excluded) - set(known)):
            raise EngineError(
                f"found graph {shown(unknown[0])} in the exclusion list, expected {', '.join(known)}; write the list "
                "again with masksam-deploy sensitivity"
            )
        self._rest = rest
        self._simulated = simulated
        self._threads = threads
        self._progress = progress
        self._made: dict[tuple[str, Precision], TypedGraph] = {}
        self._ranges: dict[str, dict[str, float]] = {}
        self._feeds = GraphFeeds(bundle, windows.windows, threads=threads, progress=progress) if windows else None

    def get(self, graph: str, precision: Precision) -> TypedGraph:
        """One graph in one precision.

        Raises:
            EngineError: int8 without calibration scans, or the result is no valid ONNX.
        """
        if (graph, precision) not in self._made:
            self._made[graph, precision] = self._make(graph, precision)
        return self._made[graph, precision]

    def close(self) -> None:
        """Forget what the graphs are fed with."""
        if self._feeds:
            self._feeds.close()

    def __enter__(self) -> TypedGraphs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, graph: str, precision: Precision) -> TypedGraph:
        source = self.bundle.graph_path(graph)
        if precision == "fp32":
            return TypedGraph(source, source, {})
        model = load_model(source)
        index = GraphIndex(model)
        protected = protected_by_structure(index)
        path = self._folder / f"{graph}.{precision}.onnx"
        made = TypedGraph(path, path, protected)
        halves = self._rest if precision == "int8" else precision
        if halves == "fp16":
            made.ranges = self._measured(graph, model) if self._feeds else {}
            for name, reason in protected_by_range(index, made.ranges).items():
                protected.setdefault(name, reason)
        if precision == "int8":
            model = self._quantised(graph, model, index, made)
        if halves in ("fp16", "bf16"):
            if self._simulated:
                made.judged = path.with_suffix(".judged.onnx")
                save_model(simulate_precision(model, halves, protected), made.judged)
            model = lower_precision(model, halves, protected)
        save_model(model, made.path)
        _check(made.path, graph)
        return made

    def _measured(self, graph: str, model: onnx.ModelProto) -> dict[str, float]:
        if graph not in self._ranges:
            assert self._feeds is not None  # the caller looked
            feeds = _told(self._feeds, graph, f"measuring ranges in {graph}", self._progress)
            self._ranges[graph] = measure_ranges(model, feeds, threads=self._threads)
        return self._ranges[graph]

    def _quantised(self, graph: str, model: onnx.ModelProto, index: GraphIndex, made: TypedGraph) -> onnx.ModelProto:
        if self._feeds is None:
            raise EngineError(
                "found no calibration scans, expected some for int8: the ranges of its tensors come from them; name "
                "them with --calibration"
            )
        feeds = self._feeds
        candidates = quantisable(index, made.protected)
        left_out = set(self._excluded.get(graph, ()))
        if unknown := sorted(left_out - {node.name for node in model.graph.node}):
            raise EngineError(
                f"graph '{graph}': found {shown(unknown[0])} in the exclusion list, expected names of its layers; "
                "write the list again with masksam-deploy sensitivity"
            )
        made.excluded = [name for name in candidates if name in left_out]
        made.quantised = [name for name in candidates if name not in left_out]
        if not made.quantised:
            raise EngineError(
                f"graph '{graph}': found nothing to quantise, expected some Linears or convolutions; ask for another "
                "precision of this graph"
            )
        ranges = activation_ranges(
            model,
            made.quantised,
            lambda: _told(feeds, graph, f"calibrating {graph}", self._progress),
            self._calibrator,
            threads=self._threads,
        )
        return quantise(model, made.quantised, ranges, runtime="tensorrt" if self._simulated else "onnxruntime")


def _told(feeds: GraphFeeds, graph: str, what: str, progress: Progress | None) -> Iterator[dict[str, Window]]:
    for number, window in enumerate(feeds.of(graph), 1):
        yield window
        if progress:
            progress(what, number, feeds.count)


def _check(path: Path, graph: str) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise EngineError(
            f"graph '{graph}': the converted graph is no valid ONNX ({str(error).splitlines()[0]}); please report this"
        ) from error
