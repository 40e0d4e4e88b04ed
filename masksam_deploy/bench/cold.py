"""A contender in a process of its own: how long until the first window, and how much memory.

`python -m masksam_deploy.bench.cold REQUEST` where REQUEST is JSON; prints JSON. Nothing but the standard library is
imported before the clock has started.
"""

from __future__ import annotations

import time

_STARTED = time.time()

import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from masksam_deploy.bench.results import ColdStart
    from masksam_deploy.runtimes.base import Device, Network

_LONGEST_ERROR = 400


@dataclass(frozen=True)
class ColdRequest:
    """What the fresh process does.

    Attributes:
        bundle: directory.
        contender: how to open it; see `Contender.fresh`.
        device: where it runs.
        threads: for the network, or None.
        window: `.npy` file with the window.
        scan: files of a scan to segment after it, one per channel; empty for none.
        tta, step: for the scan.
    """

    bundle: str
    contender: dict[str, str]
    device: Device
    threads: int | None
    window: str
    scan: tuple[str, ...] = ()
    tta: bool = True
    step: float = 0.5


def measure_cold(request: ColdRequest) -> ColdStart:
    """Start a process and read what it measured.

    Raises:
        BenchError: it failed.
    """
    from masksam_deploy.base.errors import BenchError
    from masksam_deploy.base.text import one_line
    from masksam_deploy.bench.results import ColdStart

    started = time.time()
    argument = json.dumps(asdict(request))
    command = [sys.executable, "-m", "masksam_deploy.bench.cold", argument]
    # The child imports what this process does, wherever it came from.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()
        reason = one_line(told[-1], _LONGEST_ERROR) if told else "no message"
        if done.returncode < 0:
            reason = f"stopped by signal {-done.returncode}, as the system does where memory runs out; {reason}"
        raise BenchError(f"a fresh process failed ({reason}), expected it to run a window; try --no-cold")
    told = json.loads(done.stdout.splitlines()[-1])
    stages = {"start_python": max(0.0, told.pop("began") - started)} | told.pop("stages")
    return ColdStart(stages=stages, **told)


def run_fresh(request: ColdRequest) -> dict[str, Any]:
    """What the process does: import, verify, load, one window, and if asked the whole scan."""
    stages: dict[str, float] = {}
    last = _STARTED

    def done(stage: str) -> None:
        nonlocal last
        now = time.time()
        stages[stage], last = now - last, now

    import numpy as np

    from masksam_deploy.base.nvidia import read_gpu
    from masksam_deploy.bench.contenders import open_fresh
    from masksam_deploy.bundle.directory import Bundle
    from masksam_deploy.scan_path.segmenter import Segmenter

    before = read_gpu()
    window = np.load(request.window)
    done("import")
    bundle = Bundle.load(request.bundle)
    done("verify_bundle")
    network = open_fresh(bundle, request.contender, device=request.device, threads=request.threads)
    done("load_network")
    network(window)
    done("first_window")
    after = read_gpu()
    found: dict[str, Any] = {"began": _STARTED, "stages": stages, "peak_rss_bytes": _peak(network)}
    if before and after:
        found["vram_bytes"] = max(0, after.memory_used_bytes - before.memory_used_bytes)
    if request.scan:
        from masksam_deploy.io import read_volume

        segmenter = Segmenter(
            bundle,
            device=request.device,
            network=network,
            tta=request.tta,
            step=request.step,
            threads=request.threads,
        )
        segmenter(read_volume(request.scan))
        found["scan_peak_rss_bytes"] = _peak(network)
    network.close()
    return found


def _peak(network: Network) -> int | None:
    """Most bytes that this process and the network's worker held, which may have been at different times."""
    from masksam_deploy.base.memory import peak_memory
    from masksam_deploy.runtimes import GraphChain

    own = peak_memory()
    others = network.peak_memory() if isinstance(network, GraphChain) else 0
    return None if own is None or others is None else own + others


def request_from_json(text: str) -> ColdRequest:
    """The inverse of what `measure_cold` sends."""
    content = json.loads(text)
    return ColdRequest(**content | {"scan": tuple(content["scan"])})


if __name__ == "__main__":
    print(json.dumps(run_fresh(request_from_json(sys.argv[1]))))  # noqa: T201  the parent reads it
