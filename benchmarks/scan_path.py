"""Everything of a scan's way that is not the network: seconds by stage, peak memory, before and after.

    python benchmarks/scan_path.py --against 13a9ad4      # writes benchmarks/results/scan_path.json

Two bars, on two cores: with the demo model on the Sunnybrook scan at most 15 % of the whole is not the network; on a
synthetic 512 x 512 x 400 scan with 16 classes it takes at most 60 s and 3 GB. For the synthetic scan the network is a
stand-in that returns made-up scores in no time, for the demo model it is the model. Each case runs in processes of its
own, the working tree and the revision `--against` in turns; figures are medians. Both must give the same network
input and the same label map, byte for byte, or there are no figures. On a busy machine set OMP_NUM_THREADS=1: before,
BLAS's own threads waited for each other at ten times the cost, which is not what is to be measured.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.bundle.nnunet import Normalization, Preprocessing, SplineOrders, recipe_of
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.scan_path.frame import scan_frame
from masksam_deploy.scan_path.labels_host import labels_from_scores
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.report import measure_labels
from masksam_deploy.scan_path.segmenter import Segmenter
from masksam_deploy.scan_path.windows import Accumulator, stream_scores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CHECKPOINT = ROOT / "models" / "masksam-tiny-lv" / "checkpoint_final.pth"
DEMO_SCAN = ROOT / "examples" / "sunnybrook" / "scan"

SIZE_XYZ = (512, 512, 400)
SPACING_XYZ = (0.8, 0.8, 1.5)
CLASSES = 16
PATCH = (9, 512, 512)
CASES: dict[str, tuple[tuple[float, float, float], Accumulator]] = {
    "same_grid": ((1.5, 0.8, 0.8), "float32"),
    "coarser_grid": ((2.0, 1.2, 1.2), "float32"),
    "coarser_grid_float16": ((2.0, 1.2, 1.2), "float16"),
}
"""The network's spacing (z, y, x in mm) and the accumulator; the bar is for float32, the default."""
DEMO_SHARE, SYNTHETIC_SECONDS, SYNTHETIC_GB = 0.15, 60.0, 3.0


def main() -> None:
    """Run all cases and write the result; the exit code says whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="The revision to compare with; by default there is none.")
    parser.add_argument("--bundle", type=Path, help="The demo model, exported; by default it is exported first.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "scan_path.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        case, source, output = arguments.child
        print(json.dumps(demo(source, output) if case == "demo" else synthetic(case, source, output)))
        return
    from masksam_deploy.bench.machine import provenance  # not in revisions that this script runs as `before`

    facts = provenance()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        versions = {"now": ROOT} | ({"before": unpacked(arguments.against, folder)} if arguments.against else {})
        sources = {"demo": arguments.bundle or exported(folder), **dict.fromkeys(CASES, write_scan(folder))}
        cases = {case: compared(case, source, versions, arguments.rounds, folder) for case, source in sources.items()}
    result = {
        "bars": bars(cases),
        "cases": cases,
        "against": arguments.against,
        **facts,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(cases)
    sys.exit(not all(bar["met"] for bar in result["bars"].values()))


def unpacked(revision: str, folder: Path) -> Path:
    """The package as it was at a revision."""
    target = folder / "before"
    target.mkdir()
    archive = subprocess.run(
        ["git", "archive", revision, "masksam_deploy"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive, check=True)
    return target


def exported(folder: Path) -> Path:
    """The demo model as a bundle."""
    bundle = folder / "demo.masksam"
    subprocess.run([sys.executable, "-m", "masksam_deploy", "export", str(CHECKPOINT), "-o", str(bundle)], check=True)
    return bundle


def write_scan(folder: Path) -> Path:
    """Noise with a bright ball, int16 as from a scanner, compressed."""
    x, y, z = SIZE_XYZ
    volume = np.random.default_rng(0).integers(-100, 100, (z, y, x), dtype=np.int16)
    centre = np.ogrid[-1 : 1 : z * 1j, -1 : 1 : y * 1j, -1 : 1 : x * 1j]
    volume[sum(axis**2 for axis in centre) < 0.3] += 500
    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing(SPACING_XYZ)
    SimpleITK.WriteImage(image, str(folder / "scan.nii.gz"))
    return folder / "scan.nii.gz"


def compared(case: str, source: Path, versions: dict[str, Path], rounds: int, folder: Path) -> dict[str, Any]:
    """Run one case with all versions in turns, and give medians once all results are found to be the same."""
    runs: dict[str, list[dict[str, Any]]] = {version: [] for version in versions}
    for number in range(rounds):
        for version, root in list(versions.items())[:: -1 if number % 2 else 1]:  # in both orders
            command = [sys.executable, __file__, "--child", case, str(source), str(folder / "labels.nii.gz")]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            runs[version].append(json.loads(child.stdout))
            print(f"{case} {version}: {runs[version][-1]}", file=sys.stderr)
    if len({json.dumps(run["digests"]) for found in runs.values() for run in found}) > 1:
        sys.exit(f"{case}: the versions give different results; no figures for them")
    return {version: medians(found) for version, found in runs.items()}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure of a stage, and the spread of the sum."""
    stages = {
        stage: {key: statistics.median(run["stages"][stage][key] for run in runs) for key in figures}
        for stage, figures in runs[0]["stages"].items()
    }
    other = [sum(f["wall_s"] for stage, f in run["stages"].items() if stage != "network") for run in runs]
    return {
        "stages": {stage: {key: round(value, 3) for key, value in f.items()} for stage, f in stages.items()},
        "without_network_wall_s": {
            "median": round(statistics.median(other), 2),
            "least": round(min(other), 2),
            "most": round(max(other), 2),
        },
        "without_network_cpu_s": round(sum(f.get("cpu_s", 0) for stage, f in stages.items() if stage != "network"), 2),
        "peak_rss_gb": round(max(run["peak_rss_gb"] for run in runs), 3),
        "digests": runs[0]["digests"],
    }


class Stages:
    """Wall and processor seconds by stage; those of all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str, inside: str | None = None) -> Iterator[None]:
        """Time the body of a `with`; what is `inside` another stage does not count there."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            self._add(name, wall, cpu)
            if inside:
                self._add(inside, -wall, -cpu)

    def _add(self, name: str, wall: float, cpu: float) -> None:
        figures = self.seconds.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0})
        figures["wall_s"] += wall
        figures["cpu_s"] += cpu

    def result(self, **digests: str) -> dict[str, Any]:
        """What a child reports."""
        # Not getrusage: what it tells of a child begins with what its parent held.
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
        assert found
        return {"stages": self.seconds, "peak_rss_gb": int(found.group(1)) * 1024 / 1e9, "digests": digests}


def demo(bundle: str, output: str) -> dict[str, Any]:
    """The demo model on the held-out scan, once to warm up and once for the figures."""
    with Segmenter(bundle) as segmenter:
        for _ in range(2):
            stages = Stages()
            with stages.stage("read"):
                scan = read_volume(DEMO_SCAN)
            labels, report = segmenter(scan)
            with stages.stage("write"):
                write_labels(labels, output)
    # Versions name their stages differently; a bundle is loaded once for many scans.
    for name, seconds in report.timings_s.items():
        if name != "load_network":
            stages.seconds[name] = {"wall_s": seconds}
    return stages.result(labels=digest(labels.array))


def synthetic(case: str, scan: str, output: str) -> dict[str, Any]:
    """The large scan, with made-up scores."""
    spacing, accumulator = CASES[case]
    recipe, labels, stages = recipe_of(preprocessing(spacing)), sixteen_classes(), Stages()
    # A version from before there was a choice takes its own number of threads.
    has_choice = "threads" in inspect.signature(prepare).parameters
    shared: dict[str, Any] = {"threads": len(os.sched_getaffinity(0))} if has_choice else {}
    with stages.stage("read"):
        volume = read_volume(scan)
    with stages.stage("preprocess"):
        frame = scan_frame(volume, recipe)
        data = prepare(volume, recipe, frame, **shared).data
    seen = digest(data)
    network = MadeUpScores(stages)
    with stages.stage("resample_back_and_label"):
        scores = stream_scores(
            data, PATCH, network, recipe, mirror_axes=(), accumulator=accumulator, classes=CLASSES, **shared
        )
        del data
        array = labels_from_scores(timed(scores, stages), frame, recipe.scores, labels, **shared)
    result = Volume(array, volume.geometry)
    with stages.stage("measure"):
        measure_labels(result, labels)
    with stages.stage("write"):
        write_labels(result, output)
    return stages.result(network_input=seen, labels=digest(array))


class MadeUpScores:
    """Smooth waves, one per class, and the window itself in one class, so that every window counts."""

    def __init__(self, stages: Stages) -> None:
        steps = np.random.default_rng(7).normal(size=(CLASSES, 3)) * 0.03
        z, y, x = (np.arange(size) for size in PATCH)
        self._scores = np.empty((1, CLASSES, *PATCH), np.float32)
        for index, (dz, dy, dx) in enumerate(steps):
            waves = (
                np.sin(dz * z + index)[:, None, None] * np.sin(dy * y + index)[None, :, None] * np.sin(dx * x + index)
            )
            self._scores[0, index] = 4 * waves
        self._stages = stages

    def __call__(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same memory at every call."""
        with self._stages.stage("network", inside="accumulate"):
            np.multiply(window[0, 0], 2, out=self._scores[0, 1])
        return self._scores


def timed(scores: Iterable[tuple[int, NDArray[Any]]], stages: Stages) -> Iterator[tuple[int, NDArray[Any]]]:
    """The same stream; what it takes to produce it is another stage."""
    iterator = iter(scores)
    while True:
        with stages.stage("accumulate", inside="resample_back_and_label"):
            plane = next(iterator, None)
        if plane is None:
            return
        yield plane


def preprocessing(spacing: tuple[float, float, float]) -> Preprocessing:
    """As for a CT."""
    return Preprocessing(
        channel_names=("CT",),
        transpose_forward=(0, 1, 2),
        spacing=spacing,
        normalization=(Normalization(scheme="CTNormalization", lower=-100, upper=600, mean=50, std=150),),
        resample_data=SplineOrders(order=3, order_z=0),
        resample_scores=SplineOrders(order=1, order_z=0),
    )


def sixteen_classes() -> Labels:
    """Class k is label k."""
    return Labels(classes=tuple(Label(name=f"class {k}", value=k) for k in range(CLASSES)))


def digest(array: NDArray[Any]) -> str:
    """Of all bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def bars(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was asked for and what was found."""
    demo_now = cases["demo"]["now"]
    other, network = demo_now["without_network_wall_s"]["median"], demo_now["stages"]["network"]["wall_s"]
    share = round(other / (other + network), 4)
    found: dict[str, Any] = {"demo_share": {"found": share, "most": DEMO_SHARE, "met": share <= DEMO_SHARE}}
    for case in ("same_grid", "coarser_grid"):
        seconds, gigabytes = cases[case]["now"]["without_network_wall_s"]["median"], cases[case]["now"]["peak_rss_gb"]
        found[f"{case}_s"] = {"found": seconds, "most": SYNTHETIC_SECONDS, "met": seconds <= SYNTHETIC_SECONDS}
        found[f"{case}_gb"] = {"found": gigabytes, "most": SYNTHETIC_GB, "met": gigabytes <= SYNTHETIC_GB}
    return found


def show(cases: dict[str, dict[str, Any]]) -> None:
    """A line per case, version and stage."""
    for case, versions in cases.items():
        for version, found in versions.items():
            total = found["without_network_wall_s"]["median"]
            print(f"{case}, {version}: {total} s without the network, peak {found['peak_rss_gb']} GB")
            for stage, figures in found["stages"].items():
                cpu = f"{figures['cpu_s']:>8.3f} s of processor" if "cpu_s" in figures else ""
                print(f"    {stage:<24} {figures['wall_s']:>8.3f} s  {cpu}")


if __name__ == "__main__":
    main()
