"""A whole benchmark: check, measure in turns, start afresh, count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np

from masksam_deploy.backends import Device, open_chain
from masksam_deploy.backends.onnxruntime import PROVIDERS, import_runtime
from masksam_deploy.bench.check import Expected, check_scan, check_windows, expected_of
from masksam_deploy.bench.cold import ColdRequest, measure_cold
from masksam_deploy.bench.contenders import Contender, check_names
from masksam_deploy.bench.inputs import BenchScan, Window, windows_of, windows_sha256
from masksam_deploy.bench.machine import (
    busy_warning,
    gpu_state,
    machine_facts,
    machine_state,
    recent_load,
    software_facts,
)
from masksam_deploy.bench.measure import Opened, ScanSettings, measure_scans, measure_windows, segment
from masksam_deploy.bench.results import (
    BenchError,
    BenchResult,
    Check,
    ColdStart,
    Roofline,
    Run,
    ScanTimes,
    WindowTimes,
)
from masksam_deploy.bundle import Bundle
from masksam_deploy.errors import MaskSamError
from masksam_deploy.gpus import GpuReading, read_gpu
from masksam_deploy.team import usable_cores
from masksam_deploy.text import one_line

Progress: TypeAlias = Callable[[str, int, int], None]

REFERENCE = "float32 reference"


@dataclass(frozen=True)
class Settings:
    """All that is chosen about a benchmark.

    Attributes:
        repeats: runs of single windows, for each contender.
        scan_repeats: runs of the whole scan; 0 for none, then only windows are checked too.
        windows: how many windows of the scan to use.
        threads: for the network, and for what comes before and after it; by default all cores.
        cold: whether to start fresh processes.
        roofline: whether to measure the machine's peak and count the graphs.
        scan: how scans are segmented.
        trained: whether the network's classes mean something; those of random weights do not, see `check_windows`, and
            no label map is checked.
    """

    repeats: int = 20
    scan_repeats: int = 3
    windows: int = 3
    threads: int | None = None
    cold: bool = True
    roofline: bool = True
    scan: ScanSettings = field(default_factory=ScanSettings)
    trained: bool = True

    @property
    def judges_scans(self) -> bool:
        """Whether label maps are held to those of the float32 graphs."""
        return self.trained and self.scan_repeats > 0


def run_bench(
    bundle: Bundle,
    contenders: Sequence[Contender],
    scan: BenchScan,
    settings: Settings,
    progress: Progress | None = None,
) -> BenchResult:
    """Check every contender, then time those that agree.

    All contenders that agree are in memory at the same time.

    Args:
        bundle: verified.
        contenders: of different names.
        scan: what is segmented.
        settings: how.
        progress: told what is being done.

    Raises:
        BenchError: no contenders, or two of the same name.
        ScanError: the scan cannot be read or does not fit the model.
        BackendError, EngineError: a contender does not load, or the float32 graphs fail.
    """
    check_names(contenders)
    tell: Progress = progress or (lambda *_: None)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    state, busy = machine_state(), busy_warning(recent_load(), usable_cores())
    warnings = [busy] if busy else []
    windows = windows_of(bundle, scan, settings.windows, settings.scan.step)
    with TemporaryDirectory() as name:
        folder = Path(name)
        opened: list[Opened] = []
        try:
            runs = _checked(bundle, contenders, scan, windows, settings, folder, opened, tell)
            readings: list[GpuReading] = []
            window_times, scan_times = _measured(bundle, opened, scan, windows, settings, folder, readings, tell)
            devices = [one.network.device for one in opened]
        finally:
            for one in opened:
                one.network.close()
        fresh = [one.contender for one in opened]
        cold = _cold(bundle, fresh, scan, windows[0], settings, folder, warnings, tell)
    passed = [one.contender.name for one in opened]
    timed = {
        name: {"windows": window_times[index], "scan": scan_times[index], "cold": cold[index]}
        for index, name in enumerate(passed)
    }
    roofline, problem = _roofline(bundle, devices[0] if devices else "cpu", settings, tell)
    return BenchResult(
        started_utc=started,
        bundle={"name": bundle.manifest.name, "manifest_sha256": bundle.sha256},
        input={
            "name": scan.name,
            "origin": scan.origin,
            "sha256": scan.sha256,
            "windows": len(windows),
            "windows_sha256": windows_sha256(windows),
        },
        settings=asdict(settings),
        machine=machine_facts(),
        software=software_facts(),
        state=state,
        runs=tuple(run.model_copy(update=timed.get(run.name, {})) for run in runs),
        roofline=roofline,
        roofline_problem=problem,
        gpu=gpu_state(readings),
        warnings=tuple(warnings),
    )


def _checked(
    bundle: Bundle,
    contenders: Sequence[Contender],
    scan: BenchScan,
    windows: Sequence[Window],
    settings: Settings,
    folder: Path,
    opened: list[Opened],
    tell: Progress,
) -> list[Run]:
    """What each contender is and whether it agrees; those that do are appended to `opened`."""
    steps = 1 + len(contenders)
    tell(f"checking: {REFERENCE}", 0, steps)
    expected = _expected(bundle, scan, windows, settings, folder)
    runs = []
    for number, contender in enumerate(contenders, 1):
        tell(f"checking: {contender.name}", number, steps)
        one = Opened.of(contender)
        check = check_windows(one.network, windows, expected, contender.precision, trained=settings.trained)
        if check.passed and settings.judges_scans:
            check = _scan_check(bundle, one, scan, expected, check, settings, folder)
        runs.append(
            Run(
                name=contender.name,
                device=one.network.device,
                precisions=one.network.precisions,
                engine=one.network.engine,
                providers=one.network.providers,
                check=check,
            )
        )
        if check.passed:
            opened.append(one)
        else:
            one.network.close()
    return runs


def _expected(bundle: Bundle, scan: BenchScan, windows: Sequence[Window], settings: Settings, folder: Path) -> Expected:
    network = open_chain(bundle, threads=settings.threads)
    reference = Opened(Contender(REFERENCE, "fp32", "cpu", lambda: network), network)
    with network:
        if not settings.judges_scans:
            return expected_of(network, windows, None, None, bundle)
        labels, _, _ = segment(bundle, reference, scan, settings.scan, settings.threads, folder)
        return expected_of(network, windows, labels, scan, bundle)


def _scan_check(
    bundle: Bundle,
    one: Opened,
    scan: BenchScan,
    expected: Expected,
    check: Check,
    settings: Settings,
    folder: Path,
) -> Check:
    try:
        labels, _, _ = segment(bundle, one, scan, settings.scan, settings.threads, folder)
    except MaskSamError as error:
        return check.model_copy(update={"passed": False, "problem": f"it failed: {one_line(str(error), 400)}"})
    return check_scan(check, labels, expected, bundle, one.contender.precision)


def _measured(
    bundle: Bundle,
    opened: Sequence[Opened],
    scan: BenchScan,
    windows: Sequence[Window],
    settings: Settings,
    folder: Path,
    readings: list[GpuReading],
    tell: Progress,
) -> tuple[list[WindowTimes], Sequence[ScanTimes | None]]:
    """Windows first, then scans; the GPU is read after every round of windows."""

    def look() -> None:
        reading = read_gpu()
        if reading:
            readings.append(reading)

    if not opened:
        return [], []
    times = measure_windows(opened, windows, settings.repeats, partial(tell, "timing windows"), look)
    if not settings.scan_repeats:
        return times, [None] * len(opened)
    how, told = (settings.scan, settings.threads, settings.scan_repeats), partial(tell, "timing scans")
    return times, measure_scans(bundle, opened, scan, *how, folder, told)


def _cold(
    bundle: Bundle,
    contenders: Sequence[Contender],
    scan: BenchScan,
    window: Window,
    settings: Settings,
    folder: Path,
    warnings: list[str],
    tell: Progress,
) -> list[ColdStart | None]:
    """One fresh process for each contender that can be opened in one; one that fails is a warning."""
    file = folder / "window.npy"
    np.save(file, window)
    found: list[ColdStart | None] = []
    for number, contender in enumerate(contenders):
        tell(f"starting afresh: {contender.name}", number, len(contenders))
        if not settings.cold or contender.fresh is None:
            found.append(None)
            continue
        request = ColdRequest(
            bundle=str(bundle.path.resolve()),
            contender=contender.fresh,
            device=contender.device,
            threads=settings.threads,
            window=str(file),
            scan=tuple(str(path.resolve()) for path in scan.paths) if settings.scan_repeats else (),
            tta=settings.scan.tta,
            step=settings.scan.step,
        )
        try:
            found.append(measure_cold(request))
        except BenchError as error:  # the times of hours may have been taken by now
            warnings.append(f"{contender.name}: {error}")
            found.append(None)
    return found


def _roofline(bundle: Bundle, device: Device, settings: Settings, tell: Progress) -> tuple[Roofline | None, str | None]:
    """Peaks of a device, and counts; None, and why, without onnx or where a graph cannot be counted."""
    if not settings.roofline:
        return None, "not asked for"
    if PROVIDERS[device] not in import_runtime(device).get_available_providers():
        problem = f"the peak of '{device}' is measured in ONNX Runtime; needs: pip install 'masksam-deploy[{device}]'"
        return None, problem
    tell("measuring the machine's peak", 0, 1)
    try:
        from masksam_deploy.bench.counts import count_work
        from masksam_deploy.bench.peaks import peak_bandwidth, peak_flops
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        return (
            None,
            "counting the graphs needs 'onnx', which is not installed; needs: pip install 'masksam-deploy[engines]'",
        )
    try:
        graphs = {graph.name: count_work(bundle.graph_path(graph.name)) for graph in bundle.manifest.graphs}
    except MaskSamError as error:
        return None, one_line(str(error), 400)
    try:
        flops = peak_flops(device=device, threads=settings.threads)
        bandwidth = peak_bandwidth(device=device, threads=settings.threads)
    except Exception as error:  # noqa: BLE001  whatever the runtime raises, such as too little memory: times are kept
        return None, one_line(f"the peak of '{device}' could not be measured: {error}", 400)
    return Roofline(graphs=graphs, device=device, peak_flops_per_s=flops, peak_bytes_per_s=bandwidth), None
