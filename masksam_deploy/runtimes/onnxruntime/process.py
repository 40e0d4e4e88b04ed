"""The worker process in which ONNX Runtime runs, seen from this one."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError, NetworkCrashError
from masksam_deploy.base.interruptible import GRACE, TimeLimitError, interruptible
from masksam_deploy.base.isolation import Message, SharedArray, WireError, Worker, Workers
from masksam_deploy.base.isolation.workers import end, how_it_ended
from masksam_deploy.base.memory import network_headroom, peak_memory
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.onnxruntime.library import import_runtime
from masksam_deploy.runtimes.onnxruntime.packed import Described, packed_size, unpacked
from masksam_deploy.runtimes.onnxruntime.settings import SessionSettings
from masksam_deploy.runtimes.onnxruntime.worker import FAILED, MEMORY, MISSING, REFUSED, TIME

T = TypeVar("T")
U = TypeVar("U")

_FORKED = Workers("masksam_deploy.runtimes.onnxruntime.worker")
# A process that forks after CUDA was loaded has no CUDA: a GPU's worker is a new interpreter.
_SPAWNED = Workers("masksam_deploy.runtimes.onnxruntime.worker", forks=False)
_PATIENCE = 5.0
"""Seconds beyond its limit for which a worker that should have given up is waited for, before it is killed."""
_SMALL = 2**24
"""Bytes of results that are copied. Larger ones stay in memory that was shared, which keeps a file descriptor open for
as long as somebody holds them: many of those do not fit into memory, many small ones would use up the descriptors."""
_TYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64")
_KINDS = (TIME, MEMORY, REFUSED, FAILED)


def start_runtime() -> None:
    """Begin to load ONNX Runtime, so that the first network on the CPU needs not wait for it."""
    _FORKED.start()


class RuntimeRefusedError(Exception):
    """ONNX Runtime did not do what it was asked; the text is its own.

    Attributes:
        kind: of the error, see `worker`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class AlreadyEndedError(NetworkCrashError):
    """The worker had ended before it was asked: the graph that is to run now is not to blame."""


@dataclass(frozen=True)
class FilePort:
    """A port as the file has it; `type` and `shape` in ONNX Runtime's terms."""

    name: str
    type: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class LoadedGraph:
    """A graph that the worker has loaded."""

    number: int
    inputs: tuple[FilePort, ...]
    outputs: tuple[FilePort, ...]
    provider: str


class RuntimeProcess:
    """A worker process, for the graphs of one network; it ends when the last of them is unloaded.

    What several threads ask at once is done one after the other. Once the worker has died, or was killed because it
    was too late or because a signal ended the wait, everything that is asked for is a `NetworkCrashError`.

    Args:
        device: where its graphs run.

    Raises:
        BackendError: no process can be started.
    """

    def __init__(self, device: Device = "cpu") -> None:
        self._device = device
        try:
            self._worker = (_FORKED if device == "cpu" else _SPAWNED).new()
        except OSError as error:
            raise BackendError(
                f"found that no process can be started to run the network ({error.strerror}), expected one; close "
                "other programs, or raise the limits of memory, files and processes"
            ) from error
        self._lock = threading.RLock()  # a signal's handler may close the network in the midst of a run
        self._at_work = False
        self._ended: str | None = None
        self._buffers: dict[tuple[int, str], SharedArray] = {}
        self._loaded: set[int] = set()
        self._small: SharedArray | None = None
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _end_own, self._worker, self._owner)

    def load(self, path: Path, settings: SessionSettings, seconds: float | None = None) -> LoadedGraph:
        """Load a graph, one that was made here or checked (`check_graph`).

        Args:
            path: of the file.
            settings: for ONNX Runtime.
            seconds: that it may take; None for as long as it wants.

        Raises:
            RuntimeRefusedError: ONNX Runtime does not load it.
            NetworkCrashError: it crashed.
            BackendError: the device is not available, or ONNX Runtime is broken.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        request: Message = {
            "do": "load",
            "path": os.fsencode(path.absolute()).hex(),
            "device": self._device,
            "settings": asdict(settings),
            "seconds": seconds,
            # CUDA reserves far more addresses than it uses memory.
            "headroom": network_headroom() if self._device == "cpu" else None,
            "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        }
        with self._turn():
            answer = self._ask(request, seconds)
            graph = self._understood(_loaded_graph, answer)
            self._loaded.add(graph.number)
        return graph

    def run(
        self,
        graph: LoadedGraph,
        outputs: Sequence[str] | None,
        feeds: Mapping[str, NDArray[Any]],
        seconds: float | None = None,
    ) -> list[NDArray[Any]]:
        """Run a graph.

        Args:
            graph: loaded in this process.
            outputs: names of the results wanted; None for all.
            feeds: inputs by name; they are copied.
            seconds: that it may take; None for as long as it wants.

        Raises:
            RuntimeRefusedError: it failed, or took longer.
            NetworkCrashError: it crashed.
        """
        with self._turn():
            inputs = [self._given(graph, name, np.asarray(feed)) for name, feed in feeds.items()]
            block = self._block()
            request: Message = {
                "do": "run",
                "number": graph.number,
                "inputs": inputs,
                "outputs": None if outputs is None else list(outputs),
                "seconds": seconds,
                "path": block.path if block else None,
                "room": _SMALL if block else -1,
            }
            expected = len(graph.outputs if outputs is None else outputs)
            results = self._understood(partial(_described_results, expected), self._ask(request, seconds))
            return self._results(results, block)

    def end_profiling(self, graph: LoadedGraph) -> str:
        """Where the profile was written, for a graph that was loaded with one."""
        with self._turn():
            return str(self._ask({"do": "end profiling", "number": graph.number}, None).get("profile"))

    def unload(self, graph: LoadedGraph) -> None:
        """Free a graph's memory; with the last one, the process ends."""
        if not self._is_own():  # whoever held the lock when this process was forked is not in it
            return
        with self._lock:
            self._loaded.discard(graph.number)
            if self._at_work:
                self._end_with("it was closed while it was at work")
            elif self._loaded and self._ended is None:
                self._ask({"do": "unload", "number": graph.number}, None)
        self.end_if_unused()

    def end_if_unused(self) -> None:
        """End the process if no graph is loaded."""
        if not self._loaded:
            self._ended = self._ended or "it is closed"
            self._buffers.clear()
            self._small = None
            self._end()

    def peak_memory(self) -> int | None:
        """Most bytes of memory that the worker ever held; None where the system does not say."""
        return None if self._worker.pid is None else peak_memory(self._worker.pid)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until other threads are answered.

        Raises:
            BackendError: this process was forked from the worker's; or a signal's handler asks in the midst of a run.
        """
        if not self._is_own():
            raise BackendError("the network belongs to the process that this one was forked from; make a new Segmenter")
        with self._lock:
            if self._at_work:
                raise BackendError("the network is at work for the code that a signal interrupted; use another one")
            self._at_work = True
            try:
                yield
            finally:
                self._at_work = False

    def _given(self, graph: LoadedGraph, name: str, feed: NDArray[Any]) -> dict[str, Any]:
        """Put an input where the worker can read it."""
        if feed.dtype.name not in _TYPES:
            raise RuntimeRefusedError(
                FAILED, f"input '{name}' is of type {feed.dtype}, expected one of {', '.join(_TYPES)}"
            )
        key = (graph.number, name)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != feed.shape or buffer.array.dtype != feed.dtype:
            buffer = self._buffers[key] = _shared(feed.shape, feed.dtype.name)
        np.copyto(buffer.array, feed)
        return {"name": name, "path": buffer.path, "shape": list(feed.shape), "dtype": feed.dtype.name}

    def _results(self, results: Sequence[Described], block: SharedArray | None) -> list[NDArray[Any]]:
        """The results of the last run, in memory of this process."""
        size = packed_size(results)
        if block is not None and size <= _SMALL:  # the worker has written them already
            arrays = self._understood(partial(unpacked, block.array), results)
            return [array.copy() for array in arrays]
        with _shared((size,), "uint8") as memory:
            arrays = self._understood(partial(unpacked, memory.array), results)
            self._ask({"do": "take", "path": memory.path}, None)
        return arrays

    def _block(self) -> SharedArray | None:
        """Where the worker writes small results; None where a limit allows none of its size.

        It is kept: new memory costs more than a copy of what is in it.
        """
        if self._small is None:
            with suppress(BackendError, RuntimeRefusedError):  # each result may still get memory of its own size
                self._small = _shared((_SMALL,), "uint8")
        return self._small

    def _ask(self, request: Message, seconds: float | None) -> Message:
        """One request and its answer.

        Raises:
            RuntimeRefusedError, NetworkCrashError, BackendError, MissingDependencyError: see `load`.
        """
        if self._ended is not None:
            raise AlreadyEndedError(f"the worker process of the network has ended: {self._ended}; make a new Segmenter")
        wire = self._worker.wire

        def exchange() -> Message:
            wire.send(request)
            return wire.receive()

        limit = None if seconds is None else seconds + GRACE + _PATIENCE
        try:
            answer = interruptible(exchange, self._worker.kill, limit)
        except WireError:
            raise NetworkCrashError(self._end_with(how_it_ended(end(self._worker)))) from None
        except TimeLimitError:
            self._end_with("it took too long")
            raise RuntimeRefusedError(TIME, "it took too long and was killed") from None
        except BaseException:
            self._end_with("a signal interrupted it")
            raise
        if "error" in answer:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: Message) -> Exception:
        kind, message = str(answer.get("error")), str(answer.get("message"))
        if answer.get("stuck"):
            self._end_with("it took too long")
        if kind == MISSING:
            try:
                import_runtime(self._device)  # which says how to install it
            except Exception as error:  # noqa: BLE001  given to whoever asked
                return error
        if kind == REFUSED:
            return BackendError(message)
        return RuntimeRefusedError(kind if kind in _KINDS else FAILED, message)

    def _is_own(self) -> bool:
        """Not in a process that was forked from this one: two that ask one worker would get each other's answers."""
        return os.getpid() == self._owner

    def _end_with(self, why: str) -> str:
        """End the worker; gives the first reason for which it was ended."""
        self._ended = self._ended or why
        self._end()
        return self._ended

    def _understood(self, reader: Callable[[U], T], answer: U) -> T:
        """What a worker says is not trusted: one that was taken over by a graph may say anything."""
        try:
            return reader(answer)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise NetworkCrashError(self._end_with("it does not answer as it should")) from None


def _end_own(worker: Worker, owner: int) -> None:
    """End a worker; in a process that was forked from its owner, leave it to that one."""
    if os.getpid() == owner:
        end(worker)


_LIMITS = {
    errno.EFBIG: "a limit on the size of files, which memory that processes share counts as (ulimit -f)",
    errno.EMFILE: "no free file descriptor in this process (ulimit -n)",
    errno.ENFILE: "no free file descriptor in this system",
}


def _shared(shape: tuple[int, ...], dtype: str) -> SharedArray:
    try:
        return SharedArray(shape, dtype)
    except (OSError, ValueError, OverflowError) as error:
        limit = _LIMITS.get(error.errno or 0) if isinstance(error, OSError) else None
        size = prod(shape) * np.dtype(dtype).itemsize
        if limit:
            raise BackendError(
                f"{size} bytes of tensors found {limit}, expected room for them; raise the limit"
            ) from error
        raise RuntimeRefusedError(MEMORY, f"no memory for {size} bytes of tensors: {error}") from error


def _loaded_graph(answer: Mapping[str, Any]) -> LoadedGraph:
    return LoadedGraph(
        int(answer["number"]),
        tuple(_port(value) for value in answer["inputs"]),
        tuple(_port(value) for value in answer["outputs"]),
        str(answer["provider"]),
    )


def _port(value: Mapping[str, Any]) -> FilePort:
    shape = tuple(size if isinstance(size, int) else str(size) for size in value["shape"])
    return FilePort(str(value["name"]), str(value["type"]), shape)


def _described_results(count: int, answer: Mapping[str, Any]) -> list[Described]:
    """Shapes and types, so far as they can be those of arrays."""
    results = []
    for value in answer["results"]:
        shape, dtype = tuple(int(size) for size in value["shape"]), str(value["dtype"])
        if min(shape, default=0) < 0 or dtype not in _TYPES:
            raise ValueError("not the shape and type of an array")
        results.append(Described(shape, dtype))
    if len(results) != count:
        raise ValueError("not as many results as were asked for")
    return results
