"""A benchmark and a comparison of two, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO

from rich.table import Column, Table
from rich.text import Text

from masksam_deploy.base.tables import figures, open_console, table, words
from masksam_deploy.base.text import one_line
from masksam_deploy.bench.compare import ResultComparison
from masksam_deploy.bench.results import BenchResult, Roofline, Run

_NONE = "-"


def print_result(result: BenchResult, file: IO[str]) -> None:
    """Print what was found; colours only on a terminal."""
    console = open_console(file)
    console.print(Text(headline(result)), soft_wrap=True)
    console.print(_table("Agreement with the float32 graphs", AGREEMENT, agreement_rows(result)))
    timed = [run for run in result.runs if run.windows]
    if timed:
        console.print(_table("One window, ms", WINDOWS, window_rows(timed)))
        console.print(_table("Each graph, median ms", ("contender", "graph", "median", "spread"), graph_rows(timed)))
    scans = [run for run in timed if run.scan]
    if scans:
        console.print(_table("Whole scan, median ms", ("stage", *(run.name for run in scans)), stage_rows(scans)))
    fresh = [run for run in timed if run.cold]
    if fresh:
        console.print(_table("A fresh process", ("", *(run.name for run in fresh)), cold_rows(fresh)))
    if result.roofline:
        console.print(_table("Work of one window", WORK, work_rows(result.roofline)))
    elif result.roofline_problem:
        console.print(Text(f"no roofline: {one_line(result.roofline_problem, 400)}"), soft_wrap=True)
    if result.gpu:
        console.print(_table("GPU meanwhile", ("", "lowest", "median", "highest"), gpu_rows(result)))
    for line in notes(result):
        console.print(Text(line), soft_wrap=True)


def print_comparison(comparison: ResultComparison, file: IO[str]) -> None:
    """Print all that both results have."""
    rows = [
        (
            c.run,
            c.what,
            *(c.told(value) for value in (c.old, c.new, c.noise)),
            f"{c.new / c.old:.3f}" if c.old else _NONE,
            "" if c.verdict == "same" else c.verdict,
        )
        for c in comparison.changes
    ]
    columns = ("contender", "what", "old", "new", "noise", "ratio", "")
    console = open_console(file)
    console.print(_table("Medians", columns, rows))
    for name, why in comparison.lost.items():
        console.print(Text(f"{one_line(name)} is no longer timed: {one_line(why, 400)}"), soft_wrap=True)
    for warning in comparison.warnings:
        console.print(Text(f"warning: {one_line(warning, 400)}"), soft_wrap=True)


def headline(result: BenchResult) -> str:
    """What was measured, where."""
    machine, scan = result.machine, result.input
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return (
        f"{one_line(result.bundle['name'])} on {one_line(str(scan['name']))} ({scan['origin']}): "
        f"{machine.get('processor')}, {machine.get('cores')} cores{gpu}"
    )


AGREEMENT = ("contender", "timed", "same class", "window Dice", "score error", "Dice lost on the scan", "why not")


def agreement_rows(result: BenchResult) -> list[tuple[str, ...]]:
    """One row a contender."""
    rows: list[tuple[str, ...]] = []
    for run in result.runs:
        check = run.check
        lost = (check.scan or {}).get("mean_dice_loss")
        rows.append(
            (
                run.name,
                "yes" if check.passed else "no",
                _NONE if check.decided_agreement is None else f"{int(check.decided_agreement * 1e6) / 1e4:.4f} %",
                _NONE if check.window_dice is None else f"{int(check.window_dice * 1e5) / 1e5:.5f}",
                _NONE if check.score_error is None else f"{check.score_error:.1e}",
                f"{lost:.5f}" if isinstance(lost, float) else _NONE,
                check.problem or "",
            )
        )
    return rows


WINDOWS = ("contender", "p50", "p95", "p99", "spread", "windows/s", "times the first's speed")


def window_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """One row a contender; the last column compares with the first contender that has times."""
    timed = [(run.name, run.windows) for run in runs if run.windows]
    first = timed[0][1].whole.p50
    return [
        (
            name,
            *(_ms(value) for value in (w.whole.p50, w.whole.p95, w.whole.p99, w.whole.spread)),
            f"{w.windows_per_second:.3g}",
            f"{first / w.whole.p50:.2f}",
        )
        for name, w in timed
    ]


def graph_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """One row a contender and graph."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        assert run.windows is not None  # the caller chose those
        named = dict(run.windows.graphs)
        if run.windows.copy_to_device:
            named["copy to the GPU (part of the first)"] = run.windows.copy_to_device
        rows += [(run.name, graph, _ms(timing.p50), _ms(timing.spread)) for graph, timing in named.items()]
    return rows


def stage_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """One row a stage, one column a contender."""
    scans = [run.scan for run in runs if run.scan]
    names = merged([list(scan.stages) for scan in scans])
    rows = [
        (_shown(stage), *(_ms(scan.stages[stage].p50) if stage in scan.stages else _NONE for scan in scans))
        for stage in names
        if stage != "other"
    ]
    rows.append(("other", *(_ms(scan.stages["other"].p50) for scan in scans)))
    return [*rows, ("whole", *(_ms(scan.whole.p50) for scan in scans))]


def merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All names of several lists, each as far as possible before what follows it."""
    names: list[str] = []
    for order in orders:
        following = len(names)
        for name in reversed(order):
            if name not in names:
                names.insert(following, name)
            following = names.index(name)
    return names


def cold_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """One row a stage, then memory; one column a contender."""
    starts = [run.cold for run in runs if run.cold]
    return [
        *((f"{_shown(stage)}, ms", *(_ms(start.stages[stage]) for start in starts)) for stage in starts[0].stages),
        ("whole, ms", *(_ms(start.total) for start in starts)),
        ("peak memory, MiB", *(_mib(start.peak_rss_bytes) for start in starts)),
        ("the same with a whole scan, MiB", *(_mib(start.scan_peak_rss_bytes) for start in starts)),
        ("GPU memory, MiB", *(_mib(start.vram_bytes) for start in starts)),
    ]


WORK = ("graph", "GFLOP", "MB moved", "FLOP/byte")


def work_rows(roofline: Roofline) -> list[tuple[str, ...]]:
    """One row a graph."""
    return [
        (name, f"{work.flops / 1e9:.3f}", f"{work.bytes / 1e6:.1f}", f"{work.intensity:.1f}")
        for name, work in roofline.graphs.items()
    ]


def gpu_rows(result: BenchResult) -> list[tuple[str, ...]]:
    """One row a quantity."""
    readings = result.gpu.readings if result.gpu else {}
    return [(name, *(f"{value:.6g}" for value in values)) for name, values in readings.items()]


def notes(result: BenchResult) -> list[str]:
    """What the figures depend on."""
    lines = []
    if result.roofline:
        peak = result.roofline
        lines.append(
            f"measured peak at float32: {peak.peak_flops_per_s / 1e9:.1f} GFLOP/s, "
            f"{peak.peak_bytes_per_s / 1e9:.1f} GB/s"
        )
    lines.append("; ".join(f"{name}: {one_line(value)}" for name, value in result.state.items()))
    return lines + [f"warning: {one_line(warning, 400)}" for warning in result.warnings]


def _shown(stage: str) -> str:
    return one_line(stage).replace("_", " ")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _mib(size: int | None) -> str:
    return _NONE if size is None else f"{size / 2**20:.0f}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Figures on the right, but for the first column and those that say something in words."""
    made: list[Column] = []
    for number, column in enumerate(columns):
        made += words(column) if number == 0 or column in ("why not", "graph", "what") else figures(column, fold=True)
    return table(title, made, rows)
