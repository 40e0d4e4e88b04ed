"""How large every tensor of a graph gets on real scans, measured in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from masksam_deploy.engines.graph_types import MOVEMENT, GraphIndex, copied, save_model
from masksam_deploy.runtimes.onnxruntime import BareSession, SessionSettings, thread_count

Feeds = Mapping[str, NDArray[np.float32]]
_PREFIX = "largest of "


def measure_ranges(model: ModelProto, windows: Iterable[Feeds], *, threads: int | None = None) -> dict[str, float]:
    """Largest magnitude of every float32 tensor that a node computes, over all windows.

    Args:
        model: in float32, nodes named; not modified.
        windows: the graph's inputs by port name, one window at a time.
        threads: for the network; by default all cores.

    Returns:
        Tensor name -> magnitude; infinite if anything was not finite. Tensors that only move another's elements are
        left out.
    """
    index = GraphIndex(model)
    watched = [
        name
        for node in model.graph.node
        if node.op_type not in MOVEMENT
        for name in node.output
        if index.is_float(name)
    ]
    with tempfile.TemporaryDirectory(prefix="masksam-ranges-") as folder:
        path = Path(folder) / "watched.onnx"
        save_model(_watching(model, watched), path)
        run = _session(path, threads)
        largest = dict.fromkeys(watched, 0.0)
        for feeds in windows:
            for name, value in run(feeds).items():
                found = float(value)
                largest[name] = max(largest[name], found) if np.isfinite(found) else np.inf
    return largest


def _watching(model: ModelProto, names: list[str]) -> ModelProto:
    """The graph with one scalar more per tensor: a maximum, so that nothing large leaves the runtime."""
    watching = copied(model)
    graph = watching.graph
    del graph.output[:]
    for number, name in enumerate(names):
        magnitude = f"magnitude_{number}"
        graph.node.append(onnx.helper.make_node("Abs", [name], [magnitude], name=f"abs_{number}"))
        largest = f"{_PREFIX}{name}"
        graph.node.append(onnx.helper.make_node("ReduceMax", [magnitude], [largest], name=f"max_{number}", keepdims=0))
        graph.output.append(onnx.helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
    return watching


def _session(path: Path, threads: int | None) -> Callable[[Feeds], dict[str, Any]]:
    # By default every tensor would be kept until all have been computed, and only then looked at.
    session = BareSession(path, SessionSettings(thread_count(threads), by_priority=True))
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, Any]:
        results = session.run(outputs, {name: feeds[name] for name in inputs})
        return {name.removeprefix(_PREFIX): value for name, value in zip(outputs, results, strict=True)}

    return run
