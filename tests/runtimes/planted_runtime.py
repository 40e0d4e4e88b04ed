"""The real worker, with an ONNX Runtime that does to it what a graph might; `PLANTED` in the environment says what."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np

from masksam_deploy.base.isolation import Message, Wire
from masksam_deploy.runtimes.onnxruntime import import_runtime, worker

PRELOAD = worker.PRELOAD
_DEED, _WHEN = os.environ.get("PLANTED", "nothing at run").split(" at ")


def _do() -> None:
    if _DEED == "crash":
        ctypes.string_at(0)
    if _DEED == "leave":
        os._exit(0)
    if _DEED == "endless":  # native code that lets go of the interpreter's lock and cannot be stopped
        np.sort(np.random.default_rng(0).random(10**8))
    if _DEED == "memory":
        raise MemoryError


class Planted:
    """A session that misbehaves on loading or on its second and later runs."""

    def __init__(self, *given: Any, **named: Any) -> None:
        if _WHEN == "load":
            _do()
        self._real = _REAL(*given, **named)
        self._runs = 0

    def run(self, *given: Any) -> Any:
        self._runs += 1
        if _WHEN == "run" or (_WHEN == "second run" and self._runs > 1):
            _do()
        return self._real.run(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class LyingWire(Wire):
    """Says something else than the worker does."""

    def send(self, message: Message) -> None:
        """See `Wire.send`."""
        if "results" in message:
            lies: dict[str, Message] = {
                "negative": {"results": [{"shape": [-1], "dtype": "float32"}]},
                "objects": {"results": [{"shape": [1], "dtype": "object"}]},
                "texts": {"results": [{"shape": "many", "dtype": "float32"}]},
                "huge": {"results": [{"shape": [2**62], "dtype": "float32"}]},
                "more": {"results": [{"shape": [1], "dtype": "float32"}] * 3},
                "none": {},
            }
            message = lies[_WHEN]
        super().send(message)


_REAL = import_runtime().InferenceSession


def serve(wire: Wire) -> None:
    """See `worker.serve`."""
    import_runtime().InferenceSession = Planted
    if _DEED == "lie":
        wire.__class__ = LyingWire
    worker.serve(wire)
