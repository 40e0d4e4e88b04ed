"""Running contenders in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from masksam_deploy.base.volume import Volume
from masksam_deploy.bench.contenders import Contender
from masksam_deploy.bench.inputs import BenchScan, Window
from masksam_deploy.bench.results import ScanTimes, WindowTimes
from masksam_deploy.bench.timing import Timing
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Graph
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.runtimes import Device, GraphChain, Network, Session
from masksam_deploy.runtimes.base import Tensors
from masksam_deploy.runtimes.onnxruntime import PROVIDERS, import_runtime
from masksam_deploy.scan_path.report import Stopwatch
from masksam_deploy.scan_path.segmenter import Segmenter

PAUSE = 0.05
"""Seconds before each timed run: threads of the contender before, which spin while they wait for work, fall asleep."""
LABELS = "labels.nii.gz"

Tick = Callable[[int, int], None]


class TimedSession:
    """A session whose runs add to a stopwatch under its graph's name."""

    def __init__(self, graph: Graph, session: Session, watch: Stopwatch) -> None:
        self._graph, self._session, self._watch = graph, session, watch

    @property
    def device(self) -> Device:
        """See `Session.device`."""
        return self._session.device

    @property
    def provider(self) -> str:
        """See `Session.provider`."""
        return self._session.provider

    def run(self, feeds: Tensors) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """See `Session.run`."""
        with self._watch.stage(self._graph.name):
            return self._session.run(feeds)

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()


@dataclass
class Opened:
    """A loaded contender with a clock in it."""

    contender: Contender
    network: Network
    watch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def of(cls, contender: Contender) -> Opened:
        """Load it."""
        opened = cls(contender, contender.open())
        if isinstance(opened.network, GraphChain):  # engines that stay on the GPU are timed as a whole
            opened.network = opened.network.wrapped(lambda graph, session: TimedSession(graph, session, opened.watch))
        return opened


@dataclass(frozen=True)
class ScanSettings:
    """How a scan is segmented; see `Segmenter`."""

    tta: bool = True
    step: float = 0.5


def in_turns(opened: Sequence[Opened], rounds: int) -> Iterator[tuple[int, Opened]]:
    """Round by round, every second one backwards: A B, B A, A B … so that none always follows the same one."""
    for number in range(rounds):
        for one in opened if number % 2 == 0 else reversed(opened):
            yield number, one


def measure_windows(
    opened: Sequence[Opened],
    windows: Sequence[Window],
    repeats: int,
    tick: Tick = lambda *_: None,
    after_round: Callable[[], None] = lambda: None,
) -> list[WindowTimes]:
    """Time single windows, after one untimed run of each contender.

    Args:
        opened: contenders that passed the check.
        windows: `[1, C, T, P, P]`, used in turn; every contender gets the same one in a round.
        repeats: samples of each contender.
        tick: told how many of all runs are done.
        after_round: called whenever all contenders had a run.
    """
    for one in opened:
        one.network(windows[0])
    whole: dict[str, list[float]] = {one.contender.name: [] for one in opened}
    graphs: dict[str, dict[str, list[float]]] = {one.contender.name: {} for one in opened}
    for number, one in in_turns(opened, repeats):
        name = one.contender.name
        window = windows[number % len(windows)]
        one.watch.seconds.clear()
        time.sleep(PAUSE)
        started = time.perf_counter()
        one.network(window)
        whole[name].append(time.perf_counter() - started)
        for graph, seconds in one.watch.seconds.items():
            graphs[name].setdefault(graph, []).append(seconds)
        done = sum(map(len, whole.values()))
        tick(done, repeats * len(opened))
        if done % len(opened) == 0:
            after_round()
    copies = [copy_times(windows[0], one.network.device, repeats) for one in opened]
    return [
        WindowTimes(
            whole=Timing(samples=tuple(whole[one.contender.name])),
            graphs={graph: Timing(samples=tuple(v)) for graph, v in graphs[one.contender.name].items()},
            copy_to_device=copied,
        )
        for one, copied in zip(opened, copies, strict=True)
    ]


def copy_times(window: Window, device: Device, repeats: int) -> Timing | None:
    """Copies of a window to the GPU by ONNX Runtime; None on a CPU, or without its build for GPUs.

    Not yet run on a GPU.
    """
    if device == "cpu":
        return None
    runtime = import_runtime(device)
    if PROVIDERS[device] not in runtime.get_available_providers():
        return None  # TensorRT runs without it; nothing but this figure is missing
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        runtime.OrtValue.ortvalue_from_numpy(window, device, 0)
        seconds.append(time.perf_counter() - started)
    return Timing(samples=tuple(seconds))


def segment(
    bundle: Bundle, one: Opened, scan: BenchScan, settings: ScanSettings, threads: int | None, folder: Path
) -> tuple[Volume, float, dict[str, float]]:
    """Segment a scan as `infer` does, from file to file: the label map, seconds in all, seconds by stage."""
    one.watch.seconds.clear()
    own = Stopwatch()
    started = time.perf_counter()
    with own.stage("read"):
        volume = read_volume(scan.paths)
    segmenter = Segmenter(
        bundle,
        device=one.contender.device,
        network=one.network,
        tta=settings.tta,
        step=settings.step,
        threads=threads,
    )  # not closed: that would close the network
    labels, report = segmenter(volume)
    with own.stage("write"):
        write_labels(labels, folder / LABELS)
    whole = time.perf_counter() - started
    return labels, whole, _stages(own.seconds, report.timings_s, one.watch.seconds, whole)


def measure_scans(
    bundle: Bundle,
    opened: Sequence[Opened],
    scan: BenchScan,
    settings: ScanSettings,
    threads: int | None,
    repeats: int,
    folder: Path,
    tick: Tick = lambda *_: None,
) -> list[ScanTimes]:
    """Time whole scans in turns, each contender having run one before."""
    whole: dict[str, list[float]] = {one.contender.name: [] for one in opened}
    stages: dict[str, list[dict[str, float]]] = {one.contender.name: [] for one in opened}
    for _, one in in_turns(opened, repeats):
        time.sleep(PAUSE)
        _, seconds, by_stage = segment(bundle, one, scan, settings, threads, folder)
        whole[one.contender.name].append(seconds)
        stages[one.contender.name].append(by_stage)
        tick(sum(map(len, whole.values())), repeats * len(opened))
    return [
        ScanTimes(
            whole=Timing(samples=tuple(whole[one.contender.name])),
            stages={
                stage: Timing(samples=tuple(found[stage] for found in stages[one.contender.name]))
                for stage in stages[one.contender.name][0]
            },
        )
        for one in opened
    ]


def _stages(
    own: dict[str, float], reported: dict[str, float], graphs: dict[str, float], whole: float
) -> dict[str, float]:
    """In the order of the work: the report's own stages, with its `network` told graph by graph where that is known."""
    told = {"read": own["read"]}
    for stage, seconds in reported.items():
        if stage == "network" and graphs:
            continue
        if stage == "accumulate":
            told |= graphs
        if stage != "load_network":
            told[stage] = seconds
    told["write"] = own["write"]
    return told | {"other": max(0.0, whole - sum(told.values()))}
