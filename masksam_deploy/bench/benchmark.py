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

from masksam_deploy.base.errors import BenchError, MaskSamError
from masksam_deploy.base.nvidia import GpuReading, read_gpu
from masksam_deploy.base.optional import require_packages
from masksam_deploy.base.text import one_line
from masksam_deploy.base.threads import usable_cores
from masksam_deploy.base.volume import Volume
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
from masksam_deploy.bench.results import BenchResult, ColdStart, Roofline, Run, ScanTimes, WindowTimes
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.runtimes import Device, open_chain
from masksam_deploy.runtimes.onnxruntime import PROVIDERS, import_runtime

Progress: TypeAlias = Callable[[str, int, int], None]

REFERENCE = "float32 reference"
ONE_BY_ONE = (
    "contenders were timed one after the other, not in turns: what else the machine did may have fallen on one of them"
)


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
        in_turns: whether all contenders that agree are in memory together and take turns; else each is loaded, checked
            and timed alone, for networks that do not fit together.
    """

    repeats: int = 20
    scan_repeats: int = 3
    windows: int = 3
    threads: int | None = None
    cold: bool = True
    roofline: bool = True
    scan: ScanSettings = field(default_factory=ScanSettings)
    trained: bool = True
    in_turns: bool = True

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
    windows = windows_of(bundle, scan, settings.windows, settings.scan.step)
    with TemporaryDirectory() as name:
        bench = _Bench(bundle, scan, windows, settings, Path(name), tell)
        expected = bench.expected()
        together = [contenders] if settings.in_turns else [[contender] for contender in contenders]
        runs = [run for group in together for run in bench.measured(group, expected)]
        cold = {one.name: bench.cold(one) for one, run in zip(contenders, runs, strict=True) if run.check.passed}
    device: Device = next((run.device for run in runs if run.check.passed), "cpu")
    roofline, problem = _roofline(bundle, device, settings, tell)
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
        runs=tuple(run.model_copy(update={"cold": cold.get(run.name)}) for run in runs),
        roofline=roofline,
        roofline_problem=problem,
        gpu=gpu_state(bench.readings),
        warnings=(*filter(None, (busy, None if settings.in_turns else ONE_BY_ONE)), *bench.warnings),
    )


@dataclass(frozen=True)
class _Bench:
    """What all contenders have in common; collects what the GPU told and what went wrong on the way."""

    bundle: Bundle
    scan: BenchScan
    windows: Sequence[Window]
    settings: Settings
    folder: Path
    tell: Progress
    readings: list[GpuReading] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def expected(self) -> Expected:
        """What the float32 graphs give."""
        self.tell(f"checking: {REFERENCE}", 0, 1)
        network = open_chain(self.bundle, threads=self.settings.threads)
        reference = Opened(Contender(REFERENCE, "fp32", "cpu", lambda: network), network)
        with network:
            if not self.settings.judges_scans:
                return expected_of(network, self.windows, None, None, self.bundle)
            return expected_of(network, self.windows, self._segmented(reference), self.scan, self.bundle)

    def measured(self, contenders: Sequence[Contender], expected: Expected) -> list[Run]:
        """Load, check and time contenders that are in memory together; those that disagree are not timed."""
        opened: list[Opened] = []
        runs: list[Run] = []
        try:
            for number, contender in enumerate(contenders):
                self.tell(f"checking: {contender.name}", number, len(contenders))
                opened.append(Opened.of(contender))
                runs.append(self._checked(opened[-1], expected))
                if not runs[-1].check.passed:
                    opened.pop().network.close()
            windows, scans = self._windows(opened), self._scans(opened)
        finally:
            for one in opened:
                one.network.close()
        return [run.model_copy(update={"windows": windows.get(run.name), "scan": scans.get(run.name)}) for run in runs]

    def cold(self, contender: Contender) -> ColdStart | None:
        """A fresh process, where one can open the contender; one that fails is a warning."""
        if not self.settings.cold or contender.fresh is None:
            return None
        self.tell(f"starting afresh: {contender.name}", 0, 1)
        file = self.folder / "window.npy"
        np.save(file, self.windows[0])
        request = ColdRequest(
            bundle=str(self.bundle.path.resolve()),
            contender=contender.fresh,
            device=contender.device,
            threads=self.settings.threads,
            window=str(file),
            scan=tuple(str(path.resolve()) for path in self.scan.paths) if self.settings.scan_repeats else (),
            tta=self.settings.scan.tta,
            step=self.settings.scan.step,
        )
        try:
            return measure_cold(request)
        except BenchError as error:  # the times of hours may have been taken by now
            self.warnings.append(f"{contender.name}: {error}")
            return None

    def _checked(self, one: Opened, expected: Expected) -> Run:
        network, precision = one.network, one.contender.precision
        decision = self.bundle.manifest.labels.decision
        check = check_windows(network, self.windows, expected, precision, decision, trained=self.settings.trained)
        if check.passed and self.settings.judges_scans:
            try:
                check = check_scan(check, self._segmented(one), expected, self.bundle, precision)
            except MaskSamError as error:
                problem = f"it failed: {one_line(str(error), 400)}"
                check = check.model_copy(update={"passed": False, "problem": problem})
        return Run(
            name=one.contender.name,
            device=network.device,
            precisions=network.precisions,
            engine=network.engine,
            providers=network.providers,
            check=check,
        )

    def _segmented(self, one: Opened) -> Volume:
        settings = self.settings
        return segment(self.bundle, one, self.scan, settings.scan, settings.threads, self.folder)[0]

    def _windows(self, opened: Sequence[Opened]) -> dict[str, WindowTimes]:
        """By name; the GPU is read after every round."""

        def look() -> None:
            reading = read_gpu()
            if reading:
                self.readings.append(reading)

        if not opened:
            return {}
        tick = partial(self.tell, "timing windows")
        times = measure_windows(opened, self.windows, self.settings.repeats, tick, look)
        return {one.contender.name: found for one, found in zip(opened, times, strict=True)}

    def _scans(self, opened: Sequence[Opened]) -> dict[str, ScanTimes]:
        """By name; none if scans are not timed."""
        if not opened or not self.settings.scan_repeats:
            return {}
        if not self.settings.judges_scans:  # else the check's run was the warm-up
            for one in opened:
                self._segmented(one)
        how, tick = (self.settings.scan, self.settings.threads), partial(self.tell, "timing scans")
        times = measure_scans(self.bundle, opened, self.scan, *how, self.settings.scan_repeats, self.folder, tick)
        return {one.contender.name: found for one, found in zip(opened, times, strict=True)}


def _roofline(bundle: Bundle, device: Device, settings: Settings, tell: Progress) -> tuple[Roofline | None, str | None]:
    """Peaks of a device, and counts; None, and why, without onnx or where a graph cannot be counted."""
    if not settings.roofline:
        return None, "not asked for"
    if PROVIDERS[device] not in import_runtime(device).get_available_providers():
        problem = f"the peak of '{device}' is measured in ONNX Runtime; needs: pip install 'masksam-deploy[{device}]'"
        return None, problem
    tell("measuring the machine's peak", 0, 1)
    try:
        require_packages("onnx", extra="engines", purpose="counting the graphs")
        from masksam_deploy.bench.counts import count_work
        from masksam_deploy.bench.peaks import peak_bandwidth, peak_flops

        graphs = {graph.name: count_work(bundle.graph_path(graph.name)) for graph in bundle.manifest.graphs}
    except MaskSamError as error:
        return None, one_line(str(error), 400)
    try:
        flops = peak_flops(device=device, threads=settings.threads)
        bandwidth = peak_bandwidth(device=device, threads=settings.threads)
    except Exception as error:  # noqa: BLE001  whatever the runtime raises, such as too little memory: times are kept
        return None, one_line(f"the peak of '{device}' could not be measured: {error}", 400)
    return Roofline(graphs=graphs, device=device, peak_flops_per_s=flops, peak_bytes_per_s=bandwidth), None
