"""Runs a bundle's graphs one after another, joined by port name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Graph
from masksam_deploy.runtimes.base import IMAGE, SCORES, Device, Image, Scores, Session, precision_in_words
from masksam_deploy.runtimes.onnxruntime import OnnxRuntimeSession, RuntimeProcess


class GraphChain:
    """See `Network`: one session per graph, tensors in the host's memory.

    Args:
        stages: graphs in order, with what runs each.
        precisions: of each graph, such as fp16; by default all are float32.
        engine: the name of the engine that the graphs are; None for the bundle's own graphs.
    """

    batch = 1

    def __init__(
        self,
        stages: Sequence[tuple[Graph, Session]],
        precisions: Mapping[str, str] | None = None,
        engine: str | None = None,
    ) -> None:
        self._stages = list(stages)
        self.engine = engine
        self.precisions = {graph.name: (precisions or {}).get(graph.name, "fp32") for graph, _ in stages}

    def __call__(self, image: Image) -> Scores:
        """Run all graphs; tensors are dropped as soon as no later graph needs them.

        Raises:
            BackendError: a graph failed or gave another shape than it declares.
        """
        tensors: dict[str, NDArray[np.float32]] = {IMAGE: image}
        for position, (graph, session) in enumerate(self._stages):
            tensors.update(session.run(tensors))
            needed = {port.name for later, _ in self._stages[position + 1 :] for port in later.inputs} | {SCORES}
            tensors = {name: tensor for name, tensor in tensors.items() if name in needed}
            _check_shapes(graph, tensors, image.shape[0])
        return tensors[SCORES]

    def predict_all(self, images: Iterator[Image]) -> Iterator[Scores]:
        """See `Network.predict_all`: one after the other."""
        return map(self, images)

    @property
    def device(self) -> Device:
        """Where all graphs run."""
        return self._stages[0][1].device

    @property
    def providers(self) -> dict[str, str]:
        """What runs each graph."""
        return {graph.name: session.provider for graph, session in self._stages}

    @property
    def precision(self) -> str:
        """See `precision_in_words`."""
        return precision_in_words(self.precisions)

    def wrapped(self, wrap: Callable[[Graph, Session], Session]) -> GraphChain:
        """The same network with something around each session, such as a clock; it shares and closes the sessions."""
        stages = [(graph, wrap(graph, session)) for graph, session in self._stages]
        return GraphChain(stages, self.precisions, self.engine)

    def limit_runs(self, seconds: float) -> None:
        """Let one run of one graph take so long at most; see `OnnxRuntimeSession.run_timeout`."""
        for _, session in self._stages:
            if isinstance(session, OnnxRuntimeSession):
                session.run_timeout = seconds

    def peak_memory(self) -> int | None:
        """Most bytes of memory that the worker process of the graphs ever held; None where nothing tells."""
        held = [session.peak_memory() for _, session in self._stages if isinstance(session, OnnxRuntimeSession)]
        return None if None in held else max((size for size in held if size is not None), default=0)

    def close(self) -> None:
        """Free all graphs."""
        for _, session in self._stages:
            session.close()

    def __enter__(self) -> GraphChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_chain(bundle: Bundle, *, device: Device = "cpu", threads: int | None = None) -> GraphChain:
    """Load all graphs of a bundle in float32.

    Raises:
        BundleError: a file is no graph that a runtime may be given.
        BackendError: the device is not available, or a graph does not load.
        MemoryLimitError: there is too little memory to load a graph.
        MissingDependencyError: no runtime is installed.
    """
    return open_stages(
        bundle,
        {graph.name: bundle.graph_path(graph.name) for graph in bundle.manifest.graphs},
        onnxruntime_opener(device, threads),
    )


def onnxruntime_opener(device: Device = "cpu", threads: int | None = None) -> Callable[[Graph, Path], Session]:
    """Opens graphs in ONNX Runtime, all of them in one worker process.

    Args:
        device: where they run.
        threads: that compute them; by default one for each core.
    """
    process: RuntimeProcess | None = None

    def opened(graph: Graph, path: Path) -> Session:
        nonlocal process
        process = process or RuntimeProcess(device)
        return OnnxRuntimeSession(graph, path, device=device, threads=threads, process=process)

    return opened


def open_stages(
    bundle: Bundle,
    files: Mapping[str, Path],
    opened: Callable[[Graph, Path], Session],
    precisions: Mapping[str, str] | None = None,
    engine: str | None = None,
) -> GraphChain:
    """Open one file per graph; if one does not open, those before it are closed.

    Args:
        bundle: whose graphs they are.
        files: graph name -> what to open.
        opened: makes a session from a graph and its file.
        precisions: of each graph; by default float32.
        engine: its name, if the files are one.
    """
    stages: list[tuple[Graph, Session]] = []
    try:
        for graph in bundle.manifest.graphs:
            stages.append((graph, opened(graph, files[graph.name])))
    except BaseException:
        GraphChain(stages).close()
        raise
    return GraphChain(stages, precisions, engine)


def _check_shapes(graph: Graph, tensors: dict[str, NDArray[np.float32]], batch: int) -> None:
    for port in graph.outputs:
        expected = (batch, *port.shape[1:])
        if port.name in tensors and tensors[port.name].shape != expected:
            raise BackendError(
                f"graph '{graph.name}' gave '{port.name}' of shape {tensors[port.name].shape}, "
                f"its manifest says {expected}; the bundle is inconsistent, export it again"
            )
