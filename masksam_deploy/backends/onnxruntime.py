"""ONNX Runtime, on the CPU or through CUDA."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.backends.base import Device, Tensors
from masksam_deploy.errors import BackendError, MemoryLimitError, MissingDependencyError
from masksam_deploy.graph_check import check_graph
from masksam_deploy.interruptible import TimeLimitError, interruptible
from masksam_deploy.manifest import Graph, Port
from masksam_deploy.memory import hold_memory
from masksam_deploy.team import usable_cores
from masksam_deploy.text import one_line

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
RUN_TIMEOUT = 3600.0
"""Seconds that one run of one graph may take, and loading it: the largest encoder takes minutes on a slow processor."""
_FATAL_ONLY = 4
"""Errors come out as exceptions; ONNX Runtime would also print them, in colours and over several lines."""
_MEMORY = re.compile("allocate memory|bad.alloc|out of memory", re.IGNORECASE)
_LONGEST_REASON = 300
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


def session_options(runtime: Any, threads: int | None) -> Any:
    """Silent, on so many threads; by default one for each core that this process may use.

    ONNX Runtime's own default is all cores of the machine: too many where a process is bound to some of them.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    bound = usable_cores() < (os.cpu_count() or 1)
    options.intra_op_num_threads = threads or (usable_cores() if bound else 0)
    # From the second run on, a memory pattern holds one block for all tensors: up to twice what is needed.
    options.enable_mem_pattern = False
    return options


class OnnxRuntimeSession:
    """A graph in ONNX Runtime. The device asked for is the device used, or there is an error.

    `lean` keeps no packed weights and gives memory back after every operator: slower, for graphs run once or twice.
    `run_timeout` are the seconds that one run may take, and may be set at any time.

    Raises:
        BundleError: the file is no graph that a runtime may be given, see `check_graph`.
        BackendError: the device is not available, or the graph does not load or has other ports than declared.
        MemoryLimitError: there is too little memory to load it.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(
        self, graph: Graph, path: Path, *, device: Device = "cpu", threads: int | None = None, lean: bool = False
    ) -> None:
        if device not in PROVIDERS:
            raise BackendError(f"device '{device}' is unknown; expected {' or '.join(PROVIDERS)}")
        runtime = import_runtime(device)
        wanted = PROVIDERS[device]
        if wanted not in runtime.get_available_providers():
            raise BackendError(
                f"device '{device}' was asked for, but this ONNX Runtime {runtime.__version__} offers only "
                f"{', '.join(runtime.get_available_providers())}; needs: pip install 'masksam-deploy[{device}]'"
            )
        options = session_options(runtime, threads)
        options.enable_cpu_mem_arena = not lean
        # int8 sums stay exact on x86 processors without VNNI too, so that they give what was judged elsewhere.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if lean:  # packed copies of the weights beside the weights
            options.add_session_config_entry("session.disable_prepacking", "1")
        check_graph(path)
        if device == "cpu":
            hold_memory()
        self.device = device
        self.run_timeout = RUN_TIMEOUT
        self._graph = graph
        self._runtime = runtime
        self._session: Any = self._interruptible(
            "load in",
            lambda: runtime.InferenceSession(str(path), options, providers=[(wanted, provider_options(device))]),
            lambda: None,
        )
        self.provider = str(self._session.get_providers()[0])
        if self.provider != wanted:
            raise BackendError(
                f"device '{device}' was asked for, but ONNX Runtime fell back to {self.provider}; check that the "
                "GPU driver and the CUDA and cuDNN libraries that this ONNX Runtime needs are installed"
            )
        _check_ports(graph, self._session)
        self._outputs = [port.name for port in graph.outputs]

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`. Signals, and `run_timeout`, end it between two operators.

        Raises:
            BackendError: it failed, or took longer than `run_timeout`.
            MemoryLimitError: it needs more memory than there is.
        """
        session = self._session
        if session is None:
            raise BackendError("the network is closed; make a new Segmenter")
        inputs = {port.name: feeds[port.name] for port in self._graph.inputs}
        options = self._runtime.RunOptions()
        options.log_severity_level = _FATAL_ONLY

        def stop() -> None:
            options.terminate = True

        results = self._interruptible("run in", lambda: session.run(self._outputs, inputs, options), stop)
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None

    def _interruptible(self, what: str, work: Callable[[], Any], stop: Callable[[], None]) -> Any:
        name = f"graph '{self._graph.name}'"
        try:
            return interruptible(work, stop, self.run_timeout)
        except TimeLimitError as error:
            raise BackendError(
                f"{name} took more than {self.run_timeout:g} s to {what} ONNX Runtime, expected it to be done by then; "
                "give it more time (infer --run-timeout), use a faster machine, or check where the bundle comes from"
            ) from error
        except Exception as error:
            reason = _reason(error)
            if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
                raise MemoryLimitError(
                    f"{name} found too little memory to {what} ONNX Runtime, expected more: {reason}; close other "
                    "programs, use a larger machine, or check where the bundle comes from"
                ) from error
            raise BackendError(f"{name} does not {what} ONNX Runtime: {reason}") from error


class BareSession:
    """A graph that is not one of a bundle's, such as one with further outputs; signals end loading and running it.

    Args:
        path: of the graph, one that was made here or looked at (`check_graph`).
        options: ONNX Runtime's session options.
        providers: as ONNX Runtime takes them.
    """

    def __init__(self, path: Path, options: Any, providers: list[Any]) -> None:
        self._runtime = import_runtime()
        self._session: Any = interruptible(
            lambda: self._runtime.InferenceSession(str(path), options, providers=providers)
        )

    def run(self, outputs: list[str] | None, feeds: Any) -> list[Any]:
        """As ONNX Runtime's, with its exceptions."""
        options = self._runtime.RunOptions()
        options.log_severity_level = _FATAL_ONLY

        def stop() -> None:
            options.terminate = True

        results: list[Any] = interruptible(lambda: self._session.run(outputs, feeds, options), stop)
        return results

    def __getattr__(self, name: str) -> Any:
        """All else of ONNX Runtime's session, as it is."""
        return getattr(self._session, name)


def runtime_version() -> str:
    """The installed ONNX Runtime."""
    return str(import_runtime().__version__)


def import_runtime(extra: str = "cpu") -> Any:
    """The onnxruntime module, with its telemetry switched off.

    Since 1.32 importing it writes a device id into the user's home and reports to its makers; it reads the switch
    while it is being imported. A hospital's scanner must do neither.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and broken.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise BackendError(f"ONNX Runtime is installed but incomplete: {_reason(error)}; reinstall it") from error
        raise MissingDependencyError("onnxruntime", extra, "running a bundle") from error
    except ImportError as error:
        raise BackendError(f"ONNX Runtime is installed but does not load: {_reason(error)}; reinstall it") from error
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    return onnxruntime


def provider_options(device: Device) -> dict[str, str]:
    """What ONNX Runtime is told besides the device."""
    # TF32 keeps 10 bits of the mantissa: not float32, so never silently.
    return {"use_tf32": "0"} if device == "cuda" else {}


def _reason(error: Exception) -> str:
    return one_line(str(error), _LONGEST_REASON)


def _check_ports(graph: Graph, session: Any) -> None:
    """That the file has the ports that the manifest declares: what was checked there is then true of it."""
    for side, ports, values in (
        ("input", graph.inputs, session.get_inputs()),
        ("output", graph.outputs, session.get_outputs()),
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


def _fits(port: Port, value: Any) -> bool:
    """Whether a port of a file is the declared one; sizes that the file leaves open show when it runs."""
    shape = list(value.shape)
    known = not shape or len(shape) == len(port.shape)
    same = all(not isinstance(size, int) or size == of for size, of in zip(shape[1:], port.shape[1:], strict=False))
    return value.type == _PORT_TYPES.get(port.dtype) and known and same
