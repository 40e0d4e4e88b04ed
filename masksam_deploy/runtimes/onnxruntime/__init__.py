"""ONNX Runtime, on the CPU or through CUDA, in a worker process.

A bundle's graphs are checked before the runtime gets them, and still some graphs of allowed operators crash it. So this
process never runs one: a worker does, and its end is a `NetworkCrashError` here.

```
session.py     what others use: a graph of a bundle, or any other graph
process.py     the worker process, seen from here
worker.py      what the worker does
packed.py      the results of a run in one block of memory
settings.py    how a graph is loaded
library.py     the onnxruntime module itself
```
"""

from masksam_deploy.runtimes.onnxruntime.library import import_runtime, runtime_version, session_options
from masksam_deploy.runtimes.onnxruntime.process import RuntimeProcess, start_runtime
from masksam_deploy.runtimes.onnxruntime.session import RUN_TIMEOUT, BareSession, OnnxRuntimeSession
from masksam_deploy.runtimes.onnxruntime.settings import PROVIDERS, SessionSettings, provider_options, thread_count

__all__ = [
    "PROVIDERS",
    "RUN_TIMEOUT",
    "BareSession",
    "OnnxRuntimeSession",
    "RuntimeProcess",
    "SessionSettings",
    "import_runtime",
    "provider_options",
    "runtime_version",
    "session_options",
    "start_runtime",
    "thread_count",
]
