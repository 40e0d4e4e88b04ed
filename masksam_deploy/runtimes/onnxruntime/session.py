"""A graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError, MaskSamError, MemoryLimitError, NetworkCrashError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bundle.graph_check import check_graph
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.runtimes.base import Device, Tensors
from masksam_deploy.runtimes.onnxruntime.library import LONGEST_REASON
from masksam_deploy.runtimes.onnxruntime.process import (
    AlreadyEndedError,
    FilePort,
    LoadedGraph,
    RuntimeProcess,
    RuntimeRefusedError,
)
from masksam_deploy.runtimes.onnxruntime.settings import PROVIDERS, SessionSettings, thread_count
from masksam_deploy.runtimes.onnxruntime.worker import MEMORY, TIME

RUN_TIMEOUT = 3600.0
"""Seconds that one run of one graph may take, and loading it: the largest encoder takes minutes on a slow processor."""
_PORT_TYPES = {
    "bool": "tensor(bool)",
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
}


class OnnxRuntimeSession:
    """A graph of a bundle in ONNX Runtime, in a worker process. The device asked for is used, or there is an error.

    `run_timeout` are the seconds that one run may take, and may be set at any time.

    Args:
        graph: as the manifest declares it.
        path: of its file.
        device: where it runs.
        threads: that compute it; by default one for each core that this process may use.
        lean: keep no packed weights and give memory back after every operator: slower, for graphs run once or twice.
        process: where it is loaded; by default in one of its own.

    Raises:
        BundleError: the file is no graph that a runtime may be given, see `check_graph`.
        BackendError: the device is not available, or the graph does not load or has other ports than declared.
        NetworkCrashError: ONNX Runtime crashed on it.
        MemoryLimitError: there is too little memory to load it.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        graph: Graph,
        path: Path,
        *,
        device: Device = "cpu",
        threads: int | None = None,
        lean: bool = False,
        process: RuntimeProcess | None = None,
    ) -> None:
        if device not in PROVIDERS:
            raise BackendError(f"device '{device}' is unknown; expected {' or '.join(PROVIDERS)}")
        check_graph(path)
        self.device = device
        self.run_timeout = RUN_TIMEOUT
        self._graph = graph
        self._outputs = [port.name for port in graph.outputs]
        self._loaded: LoadedGraph | None = None
        self._process = process or RuntimeProcess(device)
        try:
            self._load(path, _settings(threads, lean))
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`. Signals, and `run_timeout`, end it between two operators.

        Raises:
            BackendError: it failed, or took longer than `run_timeout`.
            NetworkCrashError: ONNX Runtime crashed on it.
            MemoryLimitError: it needs more memory than there is.
        """
        loaded = self._loaded
        if loaded is None:
            raise BackendError("the network is closed; make a new Segmenter")
        inputs = {port.name: feeds[port.name] for port in self._graph.inputs}
        with _explained(f"graph '{self._graph.name}'", "run in", self.run_timeout):
            results = self._process.run(loaded, self._outputs, inputs, self.run_timeout)
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """See `Session.close`."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            self._process.end_if_unused()
        else:
            self._process.unload(loaded)

    def peak_memory(self) -> int | None:
        """See `RuntimeProcess.peak_memory`."""
        return self._process.peak_memory()

    def _load(self, path: Path, settings: SessionSettings) -> None:
        with _explained(f"graph '{self._graph.name}'", "load in", self.run_timeout):
            self._loaded = self._process.load(path, settings, self.run_timeout)
        self.provider = self._loaded.provider
        if self.provider != PROVIDERS[self.device]:
            raise BackendError(
                f"device '{self.device}' was asked for, but ONNX Runtime fell back to {self.provider}; check that the "
                "GPU driver and the CUDA and cuDNN libraries that this ONNX Runtime needs are installed"
            )
        _check_ports(self._graph, self._loaded)


class BareSession:
    """A graph that is not one of a bundle's, such as one with further outputs, in a worker process of its own.

    Its methods are those of ONNX Runtime's session that are used here and by its quantisation tools.

    Args:
        path: of the graph, one that was made here or checked (`check_graph`).
        settings: how it is loaded.
        device: where it runs.

    Raises:
        BackendError, NetworkCrashError, MemoryLimitError: as for a bundle's graph.
    """

    def __init__(self, path: Path, settings: SessionSettings, device: Device = "cpu") -> None:
        self._name = f"graph '{shown(path.name)}'"
        self._process = RuntimeProcess(device)
        try:
            with _explained(self._name, "load in"):
                self._loaded = self._process.load(path, settings)
        finally:
            self._process.end_if_unused()

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Results of a run, in the order of `outputs`; None for all.

        Raises:
            BackendError, NetworkCrashError, MemoryLimitError: as for a bundle's graph.
        """
        with _explained(self._name, "run in"):
            return self._process.run(self._loaded, outputs, feeds)

    def get_inputs(self) -> tuple[FilePort, ...]:
        """The graph's inputs."""
        return self._loaded.inputs

    def get_outputs(self) -> tuple[FilePort, ...]:
        """The graph's outputs."""
        return self._loaded.outputs

    def end_profiling(self) -> str:
        """Where the profile was written."""
        with _explained(self._name, "end its profile in"):
            return self._process.end_profiling(self._loaded)


@contextmanager
def _explained(name: str, what: str, limit: float | None = None) -> Iterator[None]:
    """Errors of the runtime as ours.

    Args:
        name: of the graph.
        what: it was to do.
        limit: seconds that it had for that.
    """
    try:
        yield
    except RuntimeRefusedError as error:
        raise _refusal(name, what, error, limit) from error
    except AlreadyEndedError:
        raise
    except NetworkCrashError as error:
        raise NetworkCrashError(
            f"{name} did not {what} ONNX Runtime: {error}, expected it to run; check where the bundle comes from, "
            "export it again, or close other programs if the system ended it for want of memory"
        ) from error


def _refusal(name: str, what: str, error: RuntimeRefusedError, limit: float | None) -> MaskSamError:
    reason = one_line(str(error), LONGEST_REASON)
    if error.kind == TIME and limit is not None:
        return BackendError(
            f"{name} took more than {limit:g} s to {what} ONNX Runtime, expected it to be done by then; "
            "give it more time (infer --run-timeout), use a faster machine, or check where the bundle comes from"
        )
    if error.kind == MEMORY:
        return MemoryLimitError(
            f"{name} found too little memory to {what} ONNX Runtime, expected more: {reason}; close other "
            "programs, use a larger machine, or check where the bundle comes from"
        )
    return BackendError(f"{name} does not {what} ONNX Runtime: {reason}")


def _settings(threads: int | None, lean: bool) -> SessionSettings:
    # int8 sums stay exact on x86 processors without VNNI too, so that they give what was judged elsewhere.
    config = {"session.x64quantprecision": "1"}
    if lean:  # packed copies of the weights beside the weights
        config["session.disable_prepacking"] = "1"
    return SessionSettings(thread_count(threads), arena=not lean, config=config)


def _check_ports(graph: Graph, loaded: LoadedGraph) -> None:
    """That the file has the ports that the manifest declares: what was checked there is then true of it."""
    for side, ports, values in (
        ("input", graph.inputs, loaded.inputs),
        ("output", graph.outputs, loaded.outputs),
    ):
        found = {value.name: value for value in values}
        wrong = {port.name for port in ports} ^ set(found) if side == "input" else set()
        for port in ports:
            if port.name not in found or not _fits(port, found[port.name]):
                wrong.add(port.name)
        if wrong:
            name = min(wrong)
            value = found.get(name)
            has = f"{value.type} {list(value.shape)}" if value else "none"
            wanted = next((f"{port.dtype} {list(port.shape)}" for port in ports if port.name == name), "none")
            raise BackendError(
                f"graph '{graph.name}' has as {side} '{one_line(name, 80)}' {one_line(has, 80)}, its manifest says "
                f"{one_line(wanted, 80)}; the bundle is inconsistent, export it again"
            )


def _fits(port: Port, value: FilePort) -> bool:
    """Whether a port of a file is the declared one; sizes that the file leaves open show when it runs."""
    shape = list(value.shape)
    known = not shape or len(shape) == len(port.shape)
    same = all(not isinstance(size, int) or size == of for size, of in zip(shape[1:], port.shape[1:], strict=False))
    return value.type == _PORT_TYPES.get(port.dtype) and known and same
