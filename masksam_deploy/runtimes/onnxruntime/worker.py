"""The worker: loads graphs into ONNX Runtime and runs them for another process.

Each request is a JSON object whose `do` names one of `_Sessions`' methods; tensors lie in memory that the other process
made. An answer with `error` is a refusal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError, MaskSamError, MissingDependencyError
from masksam_deploy.base.interruptible import TimeLimitError, interruptible, still_running
from masksam_deploy.base.isolation import Message, Wire, WireError
from masksam_deploy.base.isolation.limits import limit_data, no_core
from masksam_deploy.base.isolation.shared import map_shared
from masksam_deploy.base.text import one_line
from masksam_deploy.runtimes.onnxruntime.library import FATAL_ONLY, import_runtime, session_options
from masksam_deploy.runtimes.onnxruntime.packed import Described, packed_size, unpacked
from masksam_deploy.runtimes.onnxruntime.settings import PROVIDERS, SessionSettings, provider_options

PRELOAD = ("masksam_deploy.runtimes.onnxruntime.preloaded",)

TIME, MEMORY, MISSING, REFUSED, FAILED = "time", "memory", "missing", "refused", "failed"
"""Kinds of errors: it took too long; too little memory; ONNX Runtime is not installed; our own words; its words."""
_OUT_OF_MEMORY = re.compile("allocate memory|bad.alloc|out of memory", re.IGNORECASE)
_LONGEST = 2000
"""Characters of an error."""


def serve(wire: Wire) -> None:
    """Answer until the other side leaves."""
    no_core()
    sessions = _Sessions()
    with suppress(WireError):
        while True:
            request = wire.receive()
            try:
                answer = sessions.answer(request)
            except Exception as error:  # noqa: BLE001  whatever a graph makes the runtime raise is a refusal
                answer = _told(error)
            wire.send(answer)


class _Sessions:
    """The graphs that were loaded, by number."""

    def __init__(self) -> None:
        self._sessions: dict[int, Any] = {}
        self._numbers = count()
        self._results: list[NDArray[Any]] = []
        self._do: dict[object, Callable[[Mapping[str, Any]], Message]] = {
            "load": self.load,
            "run": self.run,
            "take": self.take,
            "end profiling": self.end_profiling,
            "unload": self.unload,
        }

    def answer(self, request: Message) -> Message:
        """Do what is asked."""
        return self._do[request["do"]](request)

    def load(self, request: Mapping[str, Any]) -> Message:
        """Load the graph at `path`; gives its number and ports, and what runs it."""
        device = request["device"]
        runtime = import_runtime(device)
        provider = PROVIDERS[device]
        _check_available(runtime, device)
        if request["cores"] is not None:  # the server may have been started when there were others
            os.sched_setaffinity(0, request["cores"])
        if request["headroom"] is not None:
            limit_data(request["headroom"])
        options = session_options(runtime, SessionSettings.of_message(request["settings"]))
        path = os.fsdecode(bytes.fromhex(request["path"]))
        session = interruptible(
            lambda: runtime.InferenceSession(path, options, providers=[(provider, provider_options(device))]),
            seconds=request["seconds"],
        )
        number = next(self._numbers)
        self._sessions[number] = session
        return {
            "number": number,
            "inputs": [_port(value) for value in session.get_inputs()],
            "outputs": [_port(value) for value in session.get_outputs()],
            "provider": str(session.get_providers()[0]),
        }

    def run(self, request: Mapping[str, Any]) -> Message:
        """Run a graph on `inputs`, which lie in shared memory; gives the results' shapes and types.

        Results for which there is `room` are written to `path` at once, others wait for `take`.
        """
        session = self._sessions[request["number"]]
        feeds = {
            value["name"]: map_shared(value["path"], tuple(value["shape"]), value["dtype"], at_once=True)
            for value in request["inputs"]
        }
        options = import_runtime().RunOptions()
        options.log_severity_level = FATAL_ONLY

        def stop() -> None:
            options.terminate = True

        results = interruptible(lambda: session.run(request["outputs"], feeds, options), stop, request["seconds"])
        self._results = [np.asarray(result) for result in results]
        tensors = _described(self._results)
        if packed_size(tensors) <= request["room"]:
            self.take(request)
        return {"results": [tensor._asdict() for tensor in tensors]}

    def take(self, request: Mapping[str, Any]) -> Message:
        """Write the results of the last run to shared memory, and forget them."""
        results, self._results = self._results, []
        tensors = _described(results)
        block = map_shared(request["path"], (packed_size(tensors),), np.uint8, at_once=True)
        for place, result in zip(unpacked(block, tensors), results, strict=True):
            np.copyto(place, result)
        return {}

    def end_profiling(self, request: Mapping[str, Any]) -> Message:
        """Write the profile; gives the file's name."""
        return {"profile": self._sessions[request["number"]].end_profiling()}

    def unload(self, request: Mapping[str, Any]) -> Message:
        """Free a graph's memory."""
        self._sessions.pop(request["number"], None)
        return {}


def _described(arrays: Sequence[NDArray[Any]]) -> list[Described]:
    return [Described(array.shape, array.dtype.name) for array in arrays]


def _check_available(runtime: Any, device: Any) -> None:
    """The device asked for is the device used.

    Raises:
        BackendError: this ONNX Runtime does not offer it.
    """
    if PROVIDERS[device] not in runtime.get_available_providers():
        raise BackendError(
            f"device '{device}' was asked for, but this ONNX Runtime {runtime.__version__} offers only "
            f"{', '.join(runtime.get_available_providers())}; needs: pip install 'masksam-deploy[{device}]'"
        )


def _port(value: Any) -> dict[str, Any]:
    """A port of a file; sizes that it leaves open become texts."""
    shape = [size if isinstance(size, int) else one_line(str(size), 80) for size in value.shape or ()]
    return {"name": value.name, "type": value.type, "shape": shape}


def _told(error: Exception) -> Message:
    kind = FAILED
    if isinstance(error, TimeLimitError):
        kind = TIME
    elif isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        kind = MEMORY
    elif isinstance(error, MissingDependencyError):
        kind = MISSING
    elif isinstance(error, MaskSamError):
        kind = REFUSED
    message = one_line(str(error) or type(error).__name__, _LONGEST)
    return {"error": kind, "message": message, "stuck": still_running()}
