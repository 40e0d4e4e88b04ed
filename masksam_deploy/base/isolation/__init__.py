"""Runs code that untrusted files can crash in processes of its own.

The libraries that decode scans (ITK, GDCM) and the runtime that runs networks (ONNX Runtime) crash on some hostile
files, or take all memory. So this process never calls them on such a file: a worker process does, and a worker that
dies is one error and nothing else.

```
workers.py     this process: starts workers, and ends them
wire.py        requests and answers as bounded JSON
shared.py      arrays in memory that both see
server.py      Linux: a process that has loaded the libraries and forks a fresh worker for each use
spawned.py     elsewhere: a worker that is a new interpreter
limits.py      what a worker may take
```

What a worker does is a module with two names: `PRELOAD`, modules that the server imports once for all workers, and
`serve(wire)`, which answers requests until the wire ends (`io.scan_worker`, `runtimes.onnxruntime.worker`).
"""

from masksam_deploy.base.isolation.shared import SharedArray
from masksam_deploy.base.isolation.wire import Message, Wire, WireError
from masksam_deploy.base.isolation.workers import Worker, Workers

__all__ = ["Message", "SharedArray", "Wire", "WireError", "Worker", "Workers"]
