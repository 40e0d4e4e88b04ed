"""What it costs to have scans read by a worker: against the same readers in this process, and against a whole `infer`.

    python benchmarks/isolation.py --bundle demo/lv.masksam      # writes benchmarks/results/isolation.json

Both ways must give the same voxels and the same grid before anything is timed. They take turns, in both orders. Bar:
the difference is at most 5 % of the wall time of `masksam-deploy infer` on the demo's scan, measured in the same run.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np

from masksam_deploy.io import read_volume
from masksam_deploy.io.opening import open_channel
from masksam_deploy.report import runtime_versions
from masksam_deploy.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "isolation.json"
SCANS = {
    "DICOM, 11 slices": ROOT / "examples" / "sunnybrook" / "scan",
    "NIfTI, the same size": ROOT / "tests" / "data" / "e2e" / "c_cardiac" / "c_cardiac_0000.nii.gz",
}
MOST_SHARE = 0.05


def read_here(path: Path) -> Volume:
    """The same readers, without a worker."""
    channel = open_channel(path)
    array = np.zeros((1, *channel.geometry.shape_zyx), np.float32)
    channel.read_into(array[0])
    return Volume(array, channel.geometry)


def timed(ways: dict[str, Callable[[Path], Volume]], path: Path, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each way, in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in list(ways.items())[:: -1 if repeat % 2 else 1]:
            started = time.perf_counter()
            way(path)
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
    report = {
        "load_before": load,
        "cores": os.cpu_count(),
        "versions": runtime_versions(),
        "repeats": arguments.repeats,
        "reading": results,
        "infer_wall_s": round(wall, 3),
        "share_of_infer": round(share, 4),
        "bar": MOST_SHARE,
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if share > MOST_SHARE:
        raise SystemExit(f"a worker costs {share:.1%} of a run, allowed are {MOST_SHARE:.0%}")


if __name__ == "__main__":
    main()
