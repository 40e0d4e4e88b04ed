"""The tables of docs/results, made from the JSON files in benchmarks/results.

A page marks where a table goes with `<!-- table: NAME -->` and `<!-- end -->`. `make docs-generated` fills it in, so
that the pages can be read as they are and no figure is typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
Row: TypeAlias = Sequence[str]

_MARKED = re.compile(r"(<!-- table: (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BENCHED = {
    "bench_demo": "MaskSAM-Tiny-LV (trained)",
    "bench_acdc": "ViT-B 1024, layout of ACDC",
    "bench_synapse": "ViT-H 256, layout of Synapse",
    "bench_amos": "ViT-H 512, layout of AMOS",
}
_DICE = {
    "dice_lv_png": ("`recipe-lv`", "{} patients, PNG slices at nominal spacing"),
    "dice_lv_dicom_ed": ("`recipe-lv`", "{} patients, DICOM at the end of diastole"),
    "dice_hippocampus": ("`recipe-hippocampus`", "{} volumes"),
}
_ENGINES = {
    "engines_lv_png": ("ONNX Runtime CPU", "PNG"),
    "engines_lv_dicom_ed": ("ONNX Runtime CPU", "DICOM"),
    "engines_lv_png_rtx": ("TensorRT for RTX (simulated)", "PNG"),
    "engines_lv_dicom_ed_rtx": ("TensorRT for RTX (simulated)", "DICOM"),
}
_SCANS = {
    "demo": "the example's heart scan, demo model",
    "same_grid": "synthetic, network on the scan's grid",
    "coarser_grid": "synthetic, network at 2.0 × 1.2 × 1.2 mm",
    "coarser_grid_float16": "the same, `--accumulator float16`",
}
_PROFILES = ("accurate", "balanced", "fast")


@cache
def result(name: str) -> Any:
    """One file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def filled(page: str) -> str:
    """A page with all its tables made anew.

    Raises:
        KeyError: it asks for a table that is not known here.
    """
    return _MARKED.sub(lambda found: f"{found[1]}\n{_markdown(TABLES[found['name']]())}\n{found[3]}", page)


def _markdown(rows: Iterable[Row]) -> str:
    """The first row is the header."""
    header, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|" + "---|" * (header.count(" | ") + 1), *rest]) + "\n"


def dice() -> Iterable[Row]:
    """Dice of every recipe on held-out cases."""
    yield "recipe", "held-out cases", "class", "mean Dice", "worst", "mean HD95", "mean surface distance"
    for name, (recipe, cases) in _DICE.items():
        for label, found in result(name)["classes"].items():
            distances = (f"{found['mean_hd95_mm']:.1f} mm", f"{found['mean_asd_mm']:.2f} mm")
            scores = (f"{found['mean_dice']:.3f}", f"{found['min_dice']:.3f}")
            yield recipe, cases.format(found["cases"]), label, *scores, *distances


def engines() -> Iterable[Row]:
    """What engines lose on held-out cases."""
    yield (
        "engine", "held-out cases", "mean Dice, float32 → engine", "mean loss", "largest loss in a case",
        "mean Dice with float32", "gate",
    )  # fmt: skip
    for name, (target, kind) in _ENGINES.items():
        for precision, built in result(name)["precisions"].items():
            verdict = built["accepted"]
            if set(verdict["precisions"].values()) != {precision}:
                raise ValueError(
                    f"{name}.json: found a graph that fell back, expected {precision}; give it a row of its own"
                )
            found = verdict["summary"]
            yield (
                f"{target}, {precision}",
                f"{found['cases']} patients, {kind}",
                f"{found['mean_dice_float32']:.4f} → {found['mean_dice_engine']:.4f}",
                *(f"{found[key]:.4f}" for key in ("mean_dice_lost", "most_dice_lost", "mean_dice_with_float32")),
                "passed" if verdict["passed"] else "refused",
            )


def profiles() -> Iterable[Row]:
    """What every profile costs, with every precision that it may run."""
    yield "profile", "step", "precision", "network runs per scan", "mean Dice lost", "worst scan"
    found = result("profiles")
    for name in _PROFILES:
        profile = found["profiles"][name]
        for way in found["ways"]:
            allowed = profile["precision"] in (None, way["precision"]) and way["precision"] not in profile["without"]
            if allowed and way["step"] == profile["step"]:
                costs = (f"{way['mean_cost']:.4f}", f"{way['worst_cost']:.4f}")
                yield f"`{name}`", str(way["step"]), way["precision"], f"{way['runs_per_scan']:.1f}", *costs


def windows() -> Iterable[Row]:
    """One window in every backend, against PyTorch."""
    yield "network", "PyTorch eager", "ONNX Runtime, float32", "ONNX Runtime, int8"
    for name, network in _BENCHED.items():
        runs = {run["name"]: run["windows"]["whole"]["p50"] for run in result(name)["runs"]}
        baseline = runs["pytorch eager"]
        cells = [_against(runs.get(f"onnxruntime {precision}"), baseline) for precision in ("fp32", "int8")]
        yield network, _seconds(baseline), *cells


def _against(seconds: float | None, baseline: float) -> str:
    return "not measured" if seconds is None else f"{_seconds(seconds)} ({baseline / seconds:.1f}× as fast)"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def scan_path() -> Iterable[Row]:
    """All but the network, before and after it was made to stream."""
    yield "scan", "before", "now", "peak memory now"
    for name, scan in _SCANS.items():
        case = result("scan_path")["cases"][name]
        times = [case[when]["without_network_wall_s"]["median"] for when in ("before", "now")]
        yield scan, *(f"{time:.{2 if time < 1 else 1}f} s" for time in times), f"{case['now']['peak_rss_gb']:.1f} GB"


def adapters() -> Iterable[Row]:
    """Three formulations of the adapter's middle."""
    yield "adapter", "`volume`", "`stacked`", "`planes` (default)"
    for shape in result("adapter_formulations")["shapes"]:
        times = shape["median_ms"]
        others = (f"{times[name]:.0f} ms ({times['volume'] / times[name]:.1f}×)" for name in ("stacked", "planes"))
        yield shape["name"], f"{times['volume']:.0f} ms", *others


def blocks() -> Iterable[Row]:
    """Whole encoder blocks, with and without work for padding."""
    yield "block", "as defined", "rewritten"
    for block in result("encoder_rewrites")["blocks"]:
        kind = "windowed" if block["windowed"] else "global"
        times, gain = block["median_ms"], block["times_faster_than_plain"]["block"]
        yield f"{block['network']}, {kind}", f"{times['plain']:.0f} ms", f"{times['block']:.0f} ms ({gain:.2f}×)"


def rewrites() -> Iterable[Row]:
    """Rewrites of the prompt generator and the decoder."""
    yield "rewrite", "where", "as defined", "rewritten"
    for entry in result("graph_rewrites")["rewrites"]:
        before, after = (entry["median_ms"][form] / 1000 for form in ("definition", "rewritten"))
        yield entry["rewrite"], entry["where"], _seconds(before), f"{_seconds(after)} ({before / after:.1f}×)"


def fuzz() -> Iterable[Row]:
    """What became of damaged and hostile files."""
    yield "files", "tried", "read, and right", "read, nothing to compare with", "refused", "faults"
    for kind, found in result("fuzz")["kinds"].items():
        counts = (found.get(key, 0) for key in ("cases", "read and right", "read, nothing to compare with", "refused"))
        yield kind, *(str(count) for count in counts), str(len(found["faults"]))


def isolation() -> Iterable[Row]:
    """What reading, and running the network, in a worker process costs."""
    yield "what", "in a worker", "in the same process"
    content = result("isolation")
    works = {f"reading {scan}": found for scan, found in content["reading"].items()}
    works |= {f"one window of the demo's network, {threads}": found for threads, found in content["network"].items()}
    for work, found in works.items():
        yield work, f"{found['worker_ms']:.0f} ms", f"{found['in_process_ms']:.0f} ms"


def ledger() -> Iterable[Row]:
    """What the ledger of a folder costs."""
    yield "scans in the folder", "writing, per scan", "reading, per scan", "skipping with `--resume`, per scan"
    for count, found in result("ledger")["scans"].items():
        times = (found[key] for key in ("done_ms_per_scan", "read_ms_per_scan", "skipped_ms_per_scan"))
        yield count, *(f"{time:.2f} ms" for time in times)


TABLES: dict[str, Callable[[], Iterable[Row]]] = {
    "adapters": adapters,
    "blocks": blocks,
    "dice": dice,
    "engines": engines,
    "fuzz": fuzz,
    "isolation": isolation,
    "ledger": ledger,
    "profiles": profiles,
    "rewrites": rewrites,
    "scan_path": scan_path,
    "windows": windows,
}
