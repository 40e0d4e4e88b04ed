"""What workers cost: scans read, and networks run, by one, against the same code in this process.

    python benchmarks/isolation.py --bundle demo/lv.masksam      # writes benchmarks/results/isolation.json

Both ways must give the same voxels, grid and scores before anything is timed. They take turns, in both orders. Bars:
reading costs at most 5 % of the wall time of `masksam-deploy infer` on the demo's scan, measured in the same run; one
window of the demo's network, which is smaller than any real one, at most 10 % more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from masksam_deploy.base.threads import usable_cores
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.io import read_volume
from masksam_deploy.io.open_channel import open_channel
from masksam_deploy.runtimes import GraphChain, open_chain
from masksam_deploy.runtimes.base import IMAGE, SCORES, Image, Scores
from masksam_deploy.runtimes.onnxruntime import SessionSettings, import_runtime, session_options, thread_count
from masksam_deploy.scan_path.report import runtime_versions

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "isolation.json"
SCANS = {
    "DICOM, 11 slices": ROOT / "examples" / "sunnybrook" / "scan",
    "NIfTI, the same size": ROOT / "tests" / "data" / "e2e" / "c_cardiac" / "c_cardiac_0000.nii.gz",
}
MOST_SHARE = 0.05
MOST_NETWORK_SHARE = 0.1


def read_here(path: Path) -> Volume:
    """The same readers, without a worker."""
    channel = open_channel(path)
    array = np.zeros((1, *channel.geometry.shape_zyx), np.float32)
    channel.read_into(array[0])
    return Volume(array, channel.geometry)


def networks(bundle: Bundle, threads: int) -> tuple[GraphChain, Callable[[Image], Scores]]:
    """The bundle's network in a worker, and the same graphs, loaded in the same way, in this process."""
    runtime = import_runtime()
    options = session_options(
        runtime, SessionSettings(thread_count(threads), config={"session.x64quantprecision": "1"})
    )
    sessions = {
        graph.name: runtime.InferenceSession(
            str(bundle.graph_path(graph.name)), options, providers=["CPUExecutionProvider"]
        )
        for graph in bundle.manifest.graphs
    }

    def here(image: Image) -> Scores:
        tensors = {IMAGE: image}
        for graph in bundle.manifest.graphs:
            names = [port.name for port in graph.outputs]
            feeds = {port.name: tensors[port.name] for port in graph.inputs}
            tensors.update(zip(names, sessions[graph.name].run(names, feeds), strict=True))
        return tensors[SCORES]

    return open_chain(bundle, threads=threads), here


def network_cost(path: Path, threads: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one window, and how much more the worker takes."""
    bundle = Bundle.load(path)
    chain, here = networks(bundle, threads)
    shape = (1, bundle.channels, *bundle.patch_size)
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with chain:
        ways: dict[str, Callable[[Image], Scores]] = {"worker": chain, "in_process": here}
        first, second = (way(image) for way in ways.values())
        if not np.array_equal(first, second):
            raise SystemExit("the network gives other scores in a worker; nothing was timed")
        times = timed(ways, image, repeats)
    result = {f"{way}_ms": round(statistics.median(found), 2) for way, found in times.items()}
    differences = [a - b for a, b in zip(times["worker"], times["in_process"], strict=True)]
    result["difference_ms"] = round(statistics.median(differences), 3)
    result["share"] = round(statistics.median(differences) / statistics.median(times["in_process"]), 4)
    return result


def timed(ways: Mapping[str, Callable[[T], object]], given: T, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each way, in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in list(ways.items())[:: -1 if repeat % 2 else 1]:
            started = time.perf_counter()
            way(given)
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def wall_seconds(scan: Path, bundle: Path, repeats: int) -> list[float]:
    """Of the whole command, process start and all."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "masksam_deploy", "infer", str(scan), "-b", str(bundle)]
        for number in range(repeats):
            started = time.perf_counter()
            subprocess.run([*command, "-o", f"{folder}/{number}.nii.gz"], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=31)
    arguments = parser.parse_args()
    load = os.getloadavg()
    ways: dict[str, Callable[[Path], Volume]] = {"worker": read_volume, "in_process": read_here}
    results: dict[str, dict[str, float]] = {}
    for name, path in SCANS.items():
        first, second = (way(path) for way in ways.values())
        if first.geometry != second.geometry or not np.array_equal(first.array, second.array):
            raise SystemExit(f"{name}: the two ways give different scans; nothing was timed")
        times = timed(ways, path, arguments.repeats)
        results[name] = {f"{way}_ms": round(statistics.median(found), 2) for way, found in times.items()}
        pairs = zip(times["worker"], times["in_process"], strict=True)
        results[name]["difference_ms"] = round(statistics.median(a - b for a, b in pairs), 2)
    wall = statistics.median(wall_seconds(SCANS["DICOM, 11 slices"], arguments.bundle, 7))
    share = results["DICOM, 11 slices"]["difference_ms"] / 1000 / wall
    network = {f"{n} thread(s)": network_cost(arguments.bundle, n, arguments.repeats) for n in (1, usable_cores())}
    report = {
        "load_before": load,
        "cores": os.cpu_count(),
        "versions": runtime_versions(),
        "repeats": arguments.repeats,
        "reading": results,
        "network": network,
        "infer_wall_s": round(wall, 3),
        "share_of_infer": round(share, 4),
        "bar": MOST_SHARE,
        "network_bar": MOST_NETWORK_SHARE,
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if share > MOST_SHARE:
        raise SystemExit(f"a reader costs {share:.1%} of a run, allowed are {MOST_SHARE:.0%}")
    if any(cost["share"] > MOST_NETWORK_SHARE for cost in network.values()):
        raise SystemExit(f"a network in a worker takes more than {MOST_NETWORK_SHARE:.0%} longer")


if __name__ == "__main__":
    main()
