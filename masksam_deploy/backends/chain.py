"""Runs a bundle's graphs one after another, joined by port name."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.backends.base import Device, Session
from masksam_deploy.backends.onnxruntime import OnnxRuntimeSession
from masksam_deploy.bundle import Bundle
from masksam_deploy.errors import BackendError
from masksam_deploy.manifest import Graph

IMAGE = "image"
SCORES = "semseg"


class GraphChain:
    """The network as one function: `image [B, C, T, P, P]` -> `semseg [B, K, T, P, P]`."""

    def __init__(self, stages: list[tuple[Graph, Session]]) -> None:
        self._stages = stages

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
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

    @property
    def providers(self) -> dict[str, str]:
        """What runs each graph."""
        return {graph.name: session.provider for graph, session in self._stages}

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
    """Load all graphs of a bundle.

    Raises:
        BackendError: the device is not available, or a graph does not load.
        MissingDependencyError: no runtime is installed.
    """
    stages: list[tuple[Graph, Session]] = []
    try:
        for graph in bundle.manifest.graphs:
            path = bundle.graph_path(graph.name)
            stages.append((graph, OnnxRuntimeSession(graph, path, device=device, threads=threads)))
    except BaseException:
        GraphChain(stages).close()
        raise
    return GraphChain(stages)


def _check_shapes(graph: Graph, tensors: dict[str, NDArray[np.float32]], batch: int) -> None:
    for port in graph.outputs:
        expected = (batch, *port.shape[1:])
        if port.name in tensors and tensors[port.name].shape != expected:
            raise BackendError(
                f"graph '{graph.name}' gave '{port.name}' of shape {tensors[port.name].shape}, "
                f"its manifest says {expected}; the bundle is inconsistent, export it again"
            )
