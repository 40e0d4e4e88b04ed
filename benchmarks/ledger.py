"""What keeping the books of many scans costs: the real `Ledger`, entries as large as real ones, no network.

    python benchmarks/ledger.py      # writes benchmarks/results/ledger.json

Bars: at most 2 ms a scan for 10,000 scans, and ten times as many scans take at most 20 times as much of a processor.
Measured are a run in which every scan is done (its line is added, and forced to the disk and the report written now and
then and at the end), reading what such a run left, and a run that skips all of it. What the disk takes for a line that
is forced to it is measured alone, just before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.batch.ledger import Ledger, Past, Run
from masksam_deploy.batch.ledger_file import LEDGER_NAME
from masksam_deploy.batch.report import REPORT_NAME, Entry, Hashed, Job
from masksam_deploy.io.cases import ScanFiles
from masksam_deploy.outputs.one_scan import Outputs
from masksam_deploy.scan_path.report import runtime_versions

RESULTS = Path(__file__).resolve().parent / "results" / "ledger.json"
COUNTS = (1_000, 10_000)
MOST_MS, MOST_GROWTH = 2.0, 20.0
HASH = "0123456789abcdef" * 4

# As a run of the demo model writes them.
BUNDLE = {"name": "lv", "manifest_sha256": HASH, "source_sha256": HASH}
SETTINGS: dict[str, Any] = {
    "device": "CPUExecutionProvider",
    "engine": None,
    "engine_sha256": None,
    "precision": "fp32",
    "accumulator": "float32",
    "scores_on": "cpu",
    "mirror_axes": [1, 2],
    "step": 0.5,
    "batch": 1,
    "threads": 2,
    "profile": None,
    "graphs": {name: f"{name} on CPUExecutionProvider" for name in ("image_encoder", "prompt_generator", "decoder")},
}


def _run() -> Run:
    versions = runtime_versions()
    recipe = {"bundle_sha256": HASH, **{key: SETTINGS[key] for key in ("device", "precision", "step")}, **versions}
    return Run(BUNDLE, SETTINGS, versions, recipe)


def _jobs(folder: Path, count: int) -> list[Job]:
    cases = [f"patient_{number:07d}_ED" for number in range(count)]
    return [
        Job(ScanFiles(f"{case}.nii.gz", (folder / "scans" / f"{case}.nii.gz",)), Outputs(folder / f"{case}.nii.gz"))
        for case in cases
    ]


def _entry(job: Job, run: Run) -> Entry:
    geometry = {
        "size_xyz": [256, 256, 12],
        "spacing_xyz": [1.3671875, 1.3671875, 8.0],
        "origin_lps": [-172.338, -187.284, 42.1181],
        "direction_lps": [0.9998, 0.0123, -0.0138, 0.0, 0.7461, 0.6658, 0.0184, -0.6657, 0.746],
    }
    return Entry(
        name=job.name,
        status="done",
        inputs=[Hashed(path=str(job.scan.paths[0]), sha256=HASH)],
        outputs={"labels": Hashed(path=str(job.outputs.labels), sha256=HASH)},
        recipe=dict(run.recipe),
        report={
            "bundle": dict(BUNDLE),
            "scan": {**geometry, "network_grid": geometry, "windows": 36, "scores": "in memory"},
            "settings": dict(SETTINGS),
            "labels": [
                {"value": value, "name": name, "voxels": 12345, "volume_ml": 184.583123}
                for value, name in enumerate(("background", "left ventricle", "myocardium", "right ventricle"))
            ],
            "timings_s": dict.fromkeys(("read", "preprocess", "network", "resample", "labels", "write"), 1.234),
            "versions": dict(run.versions),
            "warnings": [],
            "schema_version": "1.0",
        },
    )


def measure(folder: Path, count: int) -> dict[str, float]:
    """Milliseconds per scan, and the sizes of what is written, of one run and one that resumes it."""
    run, jobs = _run(), _jobs(folder, count)
    disk = _disk_ms(folder)
    started, begun = time.perf_counter(), time.process_time()
    with Ledger(folder, jobs, run, Past(), {}) as ledger:
        for job in jobs:
            ledger.add(_entry(job, run))
        ledger.finish()
    written, used = time.perf_counter(), time.process_time()
    with Past.found(folder) or Past() as past:
        read = time.perf_counter()
        with Ledger(folder, jobs, run, past, {}) as ledger:
            for job in jobs:
                earlier = ledger.earlier(job)
                assert earlier is not None and earlier.recipe == run.recipe  # a figure of no work is none
                ledger.add(earlier.model_copy(update={"status": "skipped", "note": None}))
            ledger.finish()
        skipped, ended = time.perf_counter(), time.process_time()
    assert ledger.totals == {"pending": 0, "done": 0, "skipped": count, "failed": 0}
    per_scan = 1000 / count
    return {
        "disk_alone_ms_per_line": round(disk, 4),
        "done_ms_per_scan": round((written - started) * per_scan, 4),
        "done_cpu_ms_per_scan": round((used - begun) * per_scan, 4),
        "read_ms_per_scan": round((read - written) * per_scan, 4),
        "skipped_ms_per_scan": round((skipped - read) * per_scan, 4),
        "resumed_cpu_ms_per_scan": round((ended - used) * per_scan, 4),
        "line_bytes": round((folder / LEDGER_NAME).stat().st_size / count),
        "report_bytes": (folder / REPORT_NAME).stat().st_size,
    }


def _disk_ms(folder: Path) -> float:
    """Milliseconds that the disk takes for a line of its own."""
    with tempfile.TemporaryFile("wb", buffering=0, dir=folder) as file:
        started = time.perf_counter()
        for _ in range(200):
            file.write(b"x" * 2000)
            os.fsync(file.fileno())
        return (time.perf_counter() - started) * 5


def main() -> int:
    """Measure, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.counts:
            (Path(folder) / str(count)).mkdir()
            rows[str(count)] = measure(Path(folder) / str(count), count)
            print(count, rows[str(count)], flush=True)
    few, many = rows[str(min(arguments.counts))], rows[str(max(arguments.counts))]
    times = [key for key in few if key.endswith("_ms_per_scan")]
    more = max(arguments.counts) / min(arguments.counts)
    growth = max(more * many[key] / few[key] for key in times if "cpu" in key)
    slowest = max(many[key] for key in times)
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "scans": rows,
        "growth": round(growth, 2),
        "bars": {"ms_per_scan": MOST_MS, "growth": MOST_GROWTH},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    with atomic_path(arguments.output) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"growth {growth:.1f}, slowest {slowest:.3f} ms, peak {result['peak_mb']} MB")
    return int(slowest > MOST_MS or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
