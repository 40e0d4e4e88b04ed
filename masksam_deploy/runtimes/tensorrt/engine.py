"""One engine of TensorRT or TensorRT for RTX, loaded and held against its graph in the manifest.

The two Python modules have one API; it comes in as `trt`. Loading was tried with TensorRT for RTX on a machine without
a GPU, which gets as far as its refusal; the rest is **not yet run on a GPU**.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.text import one_line
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.runtimes.cuda.plan import MAKE_ROOM
from masksam_deploy.runtimes.tensorrt.log import Log

_TYPES = {"float32": "FLOAT", "float16": "HALF"}
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Windows:
    """How many windows at once an engine was built for."""

    least: int
    best: int
    most: int


class LoadedEngine:
    """One engine on the current GPU with one execution context, whose working memory is given to it.

    Args:
        trt: `tensorrt` or `tensorrt_rtx_bindings`.
        runtime: a `trt.Runtime` that was made with `log`.
        log: what it says is looked up here.
        graph: which the engine is of.
        path: its file, already checked against its hash.
        rebuild: the command that builds it again.
        new_context: makes from a loaded engine a context that allocates no working memory of its own (None if the
            runtime refuses), and what has to live as long as it.

    Raises:
        BackendError: it does not load here, or is not of this graph.
    """

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        log: Log,
        graph: Graph,
        path: Path,
        *,
        rebuild: str,
        new_context: Callable[[Any], tuple[Any, object]],
    ) -> None:
        self.graph = graph
        self._log = log
        self._rebuild = rebuild
        log.clear()
        # Mapped, not read: on a Jetson, a copy would take the GPU's memory.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError(load_failure(graph.name, log.first_error(), rebuild))
        check_ports(graph, _found_ports(trt, engine), rebuild)
        self.windows = _windows(engine, graph)
        context, held = new_context(engine)
        if context is None:
            raise BackendError(load_failure(graph.name, log.first_error(), rebuild))
        self._engine: Any = engine
        self._context: Any = context
        self._held: object = (runtime, held)

    def set_windows(self, count: int) -> int:
        """Fix how many windows run at once; returns the bytes of working memory that takes.

        Raises:
            BackendError: the engine was not built for so many.
        """
        context = self._context
        for port in self.graph.inputs:
            if not context.set_input_shape(port.name, (count, *port.shape[1:])):
                raise self._failure(f"takes {self.windows.least} to {self.windows.most} windows at once, not {count}")
        unknown = context.infer_shapes()
        if unknown:
            raise self._failure(f"leaves the shapes of {', '.join(unknown)} open")
        for port in self.graph.outputs:
            found, expected = tuple(context.get_tensor_shape(port.name)), (count, *port.shape[1:])
            if found != expected:
                raise self._failure(f"gives '{port.name}' of shape {found}, its manifest says {expected}")
        return int(context.update_device_memory_size_for_shapes())

    def set_memory(self, address: int, size: int) -> None:
        """Give it memory to work in: what `set_windows` returned, or more. Engines that run in turn may share it."""
        self._context.set_device_memory(address, size)

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """Start it on a stream and return at once; a stream under capture records it.

        Args:
            addresses: on the GPU, of every tensor of the graph.
            stream: the handle of a CUDA stream.

        Raises:
            BackendError: TensorRT refuses.
        """
        context = self._context
        self._log.clear()
        for port in (*self.graph.inputs, *self.graph.outputs):
            if not context.set_tensor_address(port.name, addresses[port.name]):
                raise self._failure(f"does not take an address for '{port.name}'")
        if not context.execute_async_v3(stream):
            raise self._failure("does not start")

    def close(self) -> None:
        """Free the engine's memory; nothing of it may be running."""
        self._context = None
        self._held = None
        self._engine = None

    def _failure(self, what: str) -> BackendError:
        reason = self._log.first_error()
        said = f": {one_line(reason, _LONGEST_REASON)}" if reason else ""
        return BackendError(f"engine '{self.graph.name}' {what}{said}; {_advice(reason, self._rebuild)}")


def new_runtime(trt: Any, log: Log, *, host_code: bool) -> Any:
    """What loads engines; `host_code` lets it run the TensorRT that a version-compatible engine carries."""
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = host_code
    return runtime


def new_context(trt: Any, engine: Any) -> Any:
    """An execution context whose working memory is given to it; None if TensorRT refuses. (For RTX, see `rtx`.)"""
    return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def load_failure(graph: str, reason: str, rebuild: str) -> str:
    """Why an engine does not load and what to do, from what TensorRT said."""
    said = one_line(reason, _LONGEST_REASON) or "it gave no reason"
    return f"engine '{graph}' does not load: {said}; {_advice(reason, rebuild)}"


def is_out_of_memory(text: str) -> bool:
    """Whether an error of CUDA or TensorRT says that GPU memory is used up."""
    squeezed = text.lower().replace(" ", "").replace("_", "")
    return "outofmemory" in squeezed or "memoryallocation" in squeezed or "failedallocation" in squeezed


def check_ports(graph: Graph, found: Mapping[str, tuple[str, str, tuple[int, ...]]], rebuild: str) -> None:
    """Compare an engine with its graph in the manifest.

    Args:
        graph: from the manifest.
        found: tensor -> mode (`INPUT`, `OUTPUT`), type (`FLOAT` …) and shape, the first -1 where it is open.
        rebuild: the command that builds the engine again.

    Raises:
        BackendError: they differ.
    """
    expected = {port.name: _expected(port, "INPUT") for port in graph.inputs}
    expected |= {port.name: _expected(port, "OUTPUT") for port in graph.outputs}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise BackendError(
                f"engine '{graph.name}', tensor '{name}': found {_told(found.get(name))}, expected "
                f"{_told(expected.get(name))} as in the manifest; the engine is of another graph, build it again: "
                f"{rebuild}"
            )


def _expected(port: Port, mode: str) -> tuple[str, str, tuple[int, ...]]:
    return mode, _TYPES.get(port.dtype, port.dtype), (-1, *(int(size) for size in port.shape[1:]))


def _told(tensor: tuple[str, str, tuple[int, ...]] | None) -> str:
    return "none" if tensor is None else f"{tensor[0].lower()} {tensor[1]} {list(tensor[2])}"


def _found_ports(trt: Any, engine: Any) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return {
        name: (
            "INPUT" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "OUTPUT",
            engine.get_tensor_dtype(name).name,
            tuple(engine.get_tensor_shape(name)),
        )
        for name in names
    }


def _windows(engine: Any, graph: Graph) -> Windows:
    """What the optimisation profile allows: the same for all inputs, as the builder sets it."""
    least, best, most = (int(shape[0]) for shape in engine.get_tensor_profile_shape(graph.inputs[0].name, 0))
    return Windows(least, best, most)


def _advice(reason: str, rebuild: str) -> str:
    if is_out_of_memory(reason):
        return MAKE_ROOM
    if "driver" in reason.lower() or "cudaerror 35" in reason.lower():
        return "check the GPU driver with 'masksam-deploy doctor'"
    return f"build it again on this machine: {rebuild}"
