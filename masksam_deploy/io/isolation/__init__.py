"""Reads untrusted scans in processes of their own, with limits on memory and time.

The libraries that decode scans (ITK, GDCM) crash on some hostile files, or take all memory. So this process never calls
them on a scan: a worker process reads it, and the voxels come back through shared memory. A worker that dies is a
refusal of that scan and of nothing else.

```
client.py      this process: asks, waits, maps the voxels
shared.py      the memory that both see
wire.py        requests and answers as bounded JSON
server.py      Linux: a process that has loaded the libraries and forks a fresh worker for each scan
worker.py      reads one scan, then ends
limits.py      what a worker may take
```

Elsewhere than on Linux there is no server: every scan starts a process, which costs about a third of a second.
"""

from masksam_deploy.io.isolation.client import IsolatedScan, start_reading
from masksam_deploy.io.isolation.shared import SharedArray

__all__ = ["IsolatedScan", "SharedArray", "start_reading"]
