"""The three pictures of a benchmark: latency, where a scan's time goes, and the distance to the machine's limits."""

from __future__ import annotations

from collections.abc import Sequence

from masksam_deploy.base.text import one_line
from masksam_deploy.bench.results import Roofline, Run, Work
from masksam_deploy.bench.svg import MARKERS, Marker, Scale, Svg
from masksam_deploy.runtimes.base import Device

SERIES = 6
"""Colours in the style sheet; further contenders share them, and have their names beside them."""
_WIDTH, _NAMES, _RIGHT = 860.0, 170.0, 110.0
_ROW, _BAR, _AXIS = 44.0, 18.0, 44.0
_STAGE_ROW = 21.0
_NAME_LENGTH = 24
_ROOF_HEIGHT = 420.0
_DODGE = 9.0
"""Pixels between contenders of the same intensity, which would else cover each other."""
WHOLE = "whole network"


def latency_chart(runs: Sequence[Run]) -> Svg:
    """Every window's latency as a dot, with median, p95 and p99, a row per contender."""
    timed = [(number, run.name, run.windows.whole) for number, run in enumerate(runs) if run.windows]
    height = 16 + _ROW * len(timed) + _AXIS
    svg = Svg(_WIDTH, height, "Latency of one window for every contender")
    samples = [1e3 * sample for _, _, whole in timed for sample in whole.samples]
    scale = Scale(0, max(samples) * 1.05, _NAMES, _WIDTH - _RIGHT)
    _axis(svg, scale, 8, height - _AXIS, "ms per window")
    for row, (number, name, whole) in enumerate(timed):
        y = 16 + _ROW * (row + 0.5)
        color = _color(number)
        svg.text(_NAMES - 12, y + 4, one_line(name, _NAME_LENGTH), anchor="end")
        for index, sample in enumerate(whole.samples):
            # Spread evenly, not at random: the same result gives the same picture.
            offset = 16 * ((index * 0.618) % 1 - 0.5)
            svg.mark(scale(1e3 * sample), y + offset, f"{color} dot", size=3, tip=f"{1e3 * sample:.2f} ms")
        for value, what, reach in ((whole.p50, "median", 15), (whole.p95, "p95", 9), (whole.p99, "p99", 9)):
            x = scale(1e3 * value)
            svg.line(x, y - reach, x, y + reach, "median" if what == "median" else "percentile")
        right = scale(1e3 * max(whole.samples))
        svg.text(right + 10, y + 4, f"median {1e3 * whole.p50:.1f}", "value")
    return svg


def waterfall_chart(run: Run, number: int, longest: float) -> Svg:
    """Where one contender's scan time goes: a bar per stage, beginning where the one before ends.

    Args:
        run: with scan times.
        number: of the contender, for its colour.
        longest: seconds at the right end, the same for all contenders.
    """
    assert run.scan is not None  # the caller chose it
    stages = {stage: 1e3 * timing.p50 for stage, timing in run.scan.stages.items()}
    whole = 1e3 * run.scan.whole.p50
    height = 30 + _STAGE_ROW * len(stages) + _AXIS
    svg = Svg(_WIDTH, height, f"Stages of a scan with {run.name}")
    scale = Scale(0, max(1e3 * longest, sum(stages.values())) * 1.02, _NAMES, _WIDTH - _RIGHT - 20)
    svg.text(0, 14, f"{one_line(run.name, 60)}: {whole:.0f} ms", "heading")
    _axis(svg, scale, 24, height - _AXIS, "ms")
    begin = 0.0
    for row, (stage, milliseconds) in enumerate(stages.items()):
        y = 30 + _STAGE_ROW * row
        svg.text(_NAMES - 12, y + 13, one_line(stage, _NAME_LENGTH).replace("_", " "), anchor="end")
        left, right = scale(begin), scale(begin + milliseconds)
        svg.rect(left, y + 2, right - left, _STAGE_ROW - 5, f"{_color(number)} bar", f"{milliseconds:.2f} ms")
        svg.text(max(right, left + 1) + 6, y + 13, f"{milliseconds:.1f}  ({milliseconds / whole:.1%})", "value")
        begin += milliseconds
    return svg


def roofline_chart(roofline: Roofline, runs: Sequence[Run]) -> Svg:
    """Operations per second over operations per byte, under what the machine was measured to reach."""
    work = roofline.graphs | {WHOLE: whole_work(roofline)}
    points = roofline_points(work, runs, roofline.device)
    ridge = roofline.peak_flops_per_s / roofline.peak_bytes_per_s
    intensities = [*(one.intensity for one in work.values()), ridge]
    rates = [*(rate for *_, rate in points), roofline.peak_flops_per_s]
    svg = Svg(_WIDTH, _ROOF_HEIGHT, "Roofline of the graphs")
    left, right, top, bottom = 76.0, _WIDTH - 230, 16.0, _ROOF_HEIGHT - _AXIS
    x = Scale(min(intensities) / 3, max(intensities) * 3, left, right, log=True)
    y = Scale(min(rates) / 3, max(rates) * 2, bottom, top, log=True)
    _axis(svg, x, top, bottom, "FLOP per byte (unfused, float32)")
    for tick in y.ticks():
        svg.line(left, y(tick), right, y(tick), "grid")
        svg.text(left - 8, y(tick) + 4, f"{tick / 1e9:g}", "tick", "end")
    svg.text(8, 12, "GFLOP/s", "tick")
    _roof(svg, roofline, x, y, (left, right, bottom))
    shown = [(number, runs[number].name) for number in sorted({number for number, *_ in points})]
    markers: dict[str, Marker] = {graph: MARKERS[number % len(MARKERS)] for number, graph in enumerate(work)}
    for number, run, graph, rate in points:
        tip = f"{run}, {graph}: {rate / 1e9:.1f} GFLOP/s"
        aside = _DODGE * (number - (len(runs) - 1) / 2)
        svg.mark(x(work[graph].intensity) + aside, y(rate), f"{_color(number)} point", markers[graph], 6, tip)
    _legend(svg, right + 24, top + 10, markers, shown)
    return svg


def whole_work(roofline: Roofline) -> Work:
    """All graphs together."""
    graphs = roofline.graphs.values()
    return Work(flops=sum(work.flops for work in graphs), bytes=sum(work.bytes for work in graphs))


def roofline_points(work: dict[str, Work], runs: Sequence[Run], device: Device) -> list[tuple[int, str, str, float]]:
    """(number of the contender, its name, graph, operations per second) for all that was timed and counted.

    Only what ran on the roof's own device is drawn under it.
    """
    points = []
    for number, run in enumerate(runs):
        if run.windows is None or run.device != device:
            continue
        seconds = {graph: timing.p50 for graph, timing in run.windows.graphs.items()} | {WHOLE: run.windows.whole.p50}
        points += [(number, run.name, graph, work[graph].flops / s) for graph, s in seconds.items() if graph in work]
    return points


def _roof(svg: Svg, roofline: Roofline, x: Scale, y: Scale, frame: tuple[float, float, float]) -> None:
    """The slope of the memory up to the ridge, then the flat top of the arithmetic."""
    left, right, bottom = frame
    flops, bandwidth = roofline.peak_flops_per_s, roofline.peak_bytes_per_s
    ridge = flops / bandwidth
    slope = (y(flops) - y(flops / 10)) / (x(ridge) - x(ridge / 10))
    # Where the slope enters the picture: at its left side or at its bottom.
    start_y = y(flops) - slope * (x(ridge) - left)
    start_x = left
    if start_y > bottom:
        start_x, start_y = x(ridge) + (bottom - y(flops)) / slope, bottom
    svg.line(start_x, start_y, x(ridge), y(flops), "roof")
    svg.line(x(ridge), y(flops), right, y(flops), "roof")
    svg.text(right - 4, y(flops) - 8, f"matrix product: {flops / 1e9:.0f} GFLOP/s", "value", "end")
    svg.text(
        (start_x + x(ridge)) / 2 + 10, (start_y + y(flops)) / 2 + 14, f"memory: {bandwidth / 1e9:.1f} GB/s", "value"
    )


def _legend(svg: Svg, x: float, y: float, markers: dict[str, Marker], runs: Sequence[tuple[int, str]]) -> None:
    for row, (graph, marker) in enumerate(markers.items()):
        svg.mark(x, y + 22 * row, "plain point", marker)
        svg.text(x + 14, y + 22 * row + 4, one_line(graph, _NAME_LENGTH).replace("_", " "))
    y += 22 * len(markers) + 14
    for row, (number, name) in enumerate(runs):
        svg.rect(x - 6, y + 22 * row - 6, 12, 12, f"{_color(number)} bar")
        svg.text(x + 14, y + 22 * row + 4, one_line(name, _NAME_LENGTH))


def _axis(svg: Svg, scale: Scale, top: float, bottom: float, title: str) -> None:
    """Vertical grid lines with their values below."""
    for tick in scale.ticks():
        svg.line(scale(tick), top, scale(tick), bottom, "grid")
        svg.text(scale(tick), bottom + 17, f"{tick:g}", "tick", "middle")
    ticks = scale.ticks()
    svg.text((scale(ticks[0]) + scale(ticks[-1])) / 2, bottom + 36, title, "tick", "middle")


def _color(number: int) -> str:
    return f"c{number % SERIES}"
