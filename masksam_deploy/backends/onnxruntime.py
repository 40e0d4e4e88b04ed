"""ONNX Runtime, on the CPU or through CUDA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.backends.base import Device, Tensors
from masksam_deploy.errors import BackendError, MissingDependencyError
from masksam_deploy.manifest import Graph
from masksam_deploy.team import usable_cores

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3


def session_options(runtime: Any, threads: int | None) -> Any:
    """Silent but for errors, on so many threads; by default one for each core that this process may use.

    ONNX Runtime's own default is all cores of the machine: too many where a process is bound to some of them.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    bound = usable_cores() < (os.cpu_count() or 1)
    options.intra_op_num_threads = threads or (usable_cores() if bound else 0)
    # From the second run on, a memory pattern holds one block for all tensors: up to twice what is needed.
    options.enable_mem_pattern = False
    return options


class OnnxRuntimeSession:
    """A graph in ONNX Runtime. The device asked for is the device used, or there is an error.

    `lean` keeps no packed weights and gives memory back after every operator: slower, for graphs run once or twice.
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
        try:
            self._session: Any = runtime.InferenceSession(
                str(path), options, providers=[(wanted, provider_options(device))]
            )
        except Exception as error:
            raise BackendError(f"graph '{graph.name}' does not load in ONNX Runtime: {_one_line(error)}") from error
        self.provider = str(self._session.get_providers()[0])
        if self.provider != wanted:
            raise BackendError(
                f"device '{device}' was asked for, but ONNX Runtime fell back to {self.provider}; check that the "
                "GPU driver and the CUDA and cuDNN libraries that this ONNX Runtime needs are installed"
            )
        self.device = device
        self._graph = graph
        self._outputs = [port.name for port in graph.outputs]

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        if self._session is None:
            raise BackendError("the network is closed; make a new Segmenter")
        inputs = {port.name: feeds[port.name] for port in self._graph.inputs}
        try:
            results = self._session.run(self._outputs, inputs)
        except Exception as error:
            raise BackendError(f"graph '{self._graph.name}' failed in ONNX Runtime: {_one_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


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
            raise BackendError(f"ONNX Runtime is installed but incomplete: {_one_line(error)}; reinstall it") from error
        raise MissingDependencyError("onnxruntime", extra, "running a bundle") from error
    except ImportError as error:
        raise BackendError(f"ONNX Runtime is installed but does not load: {_one_line(error)}; reinstall it") from error
    return onnxruntime


def provider_options(device: Device) -> dict[str, str]:
    """What ONNX Runtime is told besides the device."""
    # TF32 keeps 10 bits of the mantissa: not float32, so never silently.
    return {"use_tf32": "0"} if device == "cuda" else {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
