"""Which layers suffer from int8: each is quantised alone, and the class scores at the end of the chain are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from masksam_deploy.base.errors import EngineError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Graph
from masksam_deploy.bundle.rules import SCORES_PORT
from masksam_deploy.engines.calibration import CalibrationWindows, GraphFeeds
from masksam_deploy.engines.gate import LIMITS
from masksam_deploy.engines.graph_types import GraphIndex, load_model, save_model
from masksam_deploy.engines.protection import protected_by_structure
from masksam_deploy.engines.quantisation import Calibrator, activation_ranges, quantisable, quantise
from masksam_deploy.metrics.overlap import mask_dice
from masksam_deploy.runtimes.onnxruntime import OnnxRuntimeSession
from masksam_deploy.scan_path.decision import class_masks

Progress: TypeAlias = Callable[[str, int, int], None]
Scores: TypeAlias = NDArray[np.float32]

JUDGED_WINDOWS = 4
"""Per layer; every one is a run of what follows the layer's graph."""


@dataclass(frozen=True)
class LayerLoss:
    """One layer in int8, everything else in float32.

    Attributes:
        graph: it is in.
        node: its name there.
        score_error: norm of the change of the class scores over their norm.
        dice_loss: 1 - mean Dice between the label maps of the windows.
    """

    graph: str
    node: str
    score_error: float
    dice_loss: float


@dataclass(frozen=True)
class Sensitivity:
    """What was found.

    Attributes:
        ranking: every quantisable layer, most harmful first.
        excluded: graph -> layers that are better left out of int8.
        dice_loss: of everything in int8 but the excluded layers, on the judged windows.
        dice_loss_of_all: of everything in int8.
    """

    ranking: tuple[LayerLoss, ...]
    excluded: Mapping[str, list[str]]
    dice_loss: float
    dice_loss_of_all: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def measure_sensitivity(
    bundle: Bundle,
    windows: CalibrationWindows,
    *,
    calibrator: Calibrator = "percentile",
    allowed: float = LIMITS["int8"].mean,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Quantise every layer alone, rank, and leave out the worst, twice as many each time, until the loss is allowed.

    Args:
        bundle: with the float32 graphs.
        windows: of calibration scans; the ranges come from all, the ranking from a few, evenly chosen.
        calibrator: how ranges are chosen.
        allowed: Dice that everything in int8 together may lose on the judged windows.
        threads: for the network; by default all cores.
        progress: told about every layer.

    Raises:
        BackendError: a graph failed.
    """
    with GraphFeeds(bundle, windows.windows, threads=threads, progress=progress) as feeds:
        judge = _Judge(bundle, feeds, threads)
        try:
            layers = {
                graph.name: _QuantisableGraph(bundle, graph, feeds, calibrator, threads)
                for graph in bundle.manifest.graphs
            }
            ranking = _rank(layers, judge, progress)
            return _leave_out(layers, judge, ranking, allowed, progress)
        finally:
            judge.close()


class _QuantisableGraph:
    """A graph, its candidates and their ranges."""

    def __init__(
        self, bundle: Bundle, graph: Graph, feeds: GraphFeeds, calibrator: Calibrator, threads: int | None
    ) -> None:
        self.model = load_model(bundle.graph_path(graph.name))
        index = GraphIndex(self.model)
        self.nodes = quantisable(index, protected_by_structure(index))
        own = partial(feeds.of, graph.name)
        self.ranges = activation_ranges(self.model, self.nodes, own, calibrator, threads=threads)

    def quantised(self, nodes: Collection[str]) -> ModelProto:
        """With these nodes in int8."""
        return quantise(self.model, nodes, self.ranges) if nodes else self.model


class _Judge:
    """Runs changed graphs, and what follows them, on the judged windows."""

    def __init__(self, bundle: Bundle, feeds: GraphFeeds, threads: int | None) -> None:
        self._graphs = bundle.manifest.graphs
        self._feeds = feeds
        self._threads = threads
        self._float32 = {
            graph.name: OnnxRuntimeSession(graph, bundle.graph_path(graph.name), threads=threads)
            for graph in self._graphs
        }
        self._decision = bundle.manifest.labels.decision
        showing = [w for w in range(feeds.count) if self._masks(feeds.tensor(w, SCORES_PORT)).any()]
        if not showing:
            raise EngineError(
                "found no class in any calibration window, expected some that show what the bundle segments; name "
                "other scans"
            )
        count = min(JUDGED_WINDOWS, len(showing))
        self._windows = [showing[round(place)] for place in np.linspace(0, len(showing) - 1, count)]
        self._expected = [feeds.tensor(window, SCORES_PORT) for window in self._windows]

    def loss(self, changed: Mapping[str, ModelProto]) -> tuple[float, float]:
        """Relative error of the scores, and Dice lost, with some graphs replaced."""
        with tempfile.TemporaryDirectory(prefix="masksam-sensitivity-") as folder:
            sessions: dict[str, OnnxRuntimeSession] = {}
            for graph in self._graphs:
                if graph.name in changed:
                    path = Path(folder) / f"{graph.name}.onnx"
                    save_model(changed[graph.name], path)
                    sessions[graph.name] = OnnxRuntimeSession(graph, path, threads=self._threads)
            scores = [self._run(window, sessions) for window in self._windows]
            for session in sessions.values():
                session.close()
        return _score_error(scores, self._expected), self._dice_loss(scores)

    def _masks(self, scores: Scores) -> NDArray[np.bool_]:
        """Which voxels each class takes, `[classes, B, ...]`: all but the background, or every region."""
        return class_masks(np.moveaxis(scores, 1, 0), self._decision, background=False)

    def _dice_loss(self, scores: Sequence[Scores]) -> float:
        """1 - mean Dice over the windows and the classes that occur in them."""
        dice = [
            value
            for found, wanted in zip(scores, self._expected, strict=True)
            for value in mask_dice(self._masks(found), self._masks(wanted))
            if value is not None
        ]
        return 1.0 - float(np.mean(dice)) if dice else 0.0

    def close(self) -> None:
        """Free the float32 graphs."""
        for session in self._float32.values():
            session.close()

    def _run(self, window: int, sessions: Mapping[str, OnnxRuntimeSession]) -> Scores:
        """From the first changed graph on; what comes before it is known."""
        names = [graph.name for graph in self._graphs]
        first = min(names.index(name) for name in sessions)
        tensors = {
            port.name: self._feeds.tensor(window, port.name)
            for graph in self._graphs[first:]
            for port in graph.inputs
            if port.name in self._known(first)
        }
        for graph in self._graphs[first:]:
            session = sessions.get(graph.name) or self._float32[graph.name]
            tensors.update(session.run(tensors))
        return tensors[SCORES_PORT]

    def _known(self, first: int) -> set[str]:
        return {"image"} | {port.name for graph in self._graphs[:first] for port in graph.outputs}


def _rank(layers: Mapping[str, _QuantisableGraph], judge: _Judge, progress: Progress | None) -> tuple[LayerLoss, ...]:
    every = [(graph, node) for graph, layer in layers.items() for node in layer.nodes]
    losses = []
    for number, (graph, node) in enumerate(every, 1):
        error, dice = judge.loss({graph: layers[graph].quantised([node])})
        losses.append(LayerLoss(graph, node, error, dice))
        if progress:
            progress(f"int8 for one layer of {graph}", number, len(every))
    return tuple(sorted(losses, key=lambda loss: (-loss.dice_loss, -loss.score_error)))


def _leave_out(
    layers: Mapping[str, _QuantisableGraph],
    judge: _Judge,
    ranking: Sequence[LayerLoss],
    allowed: float,
    progress: Progress | None,
) -> Sensitivity:
    """Double the number of the worst layers left out until the rest is within what is allowed."""
    count, first = 0, None
    while True:
        excluded = {name: [loss.node for loss in ranking[:count] if loss.graph == name] for name in layers}
        kept = {name: [node for node in layer.nodes if node not in excluded[name]] for name, layer in layers.items()}
        changed = {name: layers[name].quantised(nodes) for name, nodes in kept.items() if nodes}
        dice = judge.loss(changed)[1] if changed else 0.0
        first = dice if first is None else first
        if progress:
            progress(f"int8 without the {count} worst layers", count, len(ranking))
        if dice <= allowed or count >= len(ranking):
            return Sensitivity(tuple(ranking), {name: nodes for name, nodes in excluded.items() if nodes}, dice, first)
        count = min(len(ranking), max(1, 2 * count))


def _score_error(scores: Sequence[Scores], expected: Sequence[Scores]) -> float:
    change = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(scores, expected, strict=True))
    size = sum(float(np.square(b, dtype=np.float64).sum()) for b in expected)
    return float(np.sqrt(change / size)) if size else 0.0
