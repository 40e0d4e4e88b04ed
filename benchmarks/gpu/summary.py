"""What was found, as one JSON file named after the card and a short text beside it.

    python -m benchmarks.gpu.summary

Both lie in the output folder and, if the step `environment` has told the card's name, in benchmarks/results.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.place import dry
from benchmarks.gpu.results import REPOSITORY, out_folder, read_json

PARTS = ("environment", "kernel", "sanitizer", "tests", "windows_acdc", "windows_amos", "windows_synapse")
BASELINE = "authors' AMP, eager"
DRY_RUN = "dry run"
UNKNOWN = "unknown card"
"""The device of a run without the step `environment`."""
WIDTH = 160


def main() -> None:
    """Gather, write, print."""
    out = out_folder()
    found = gather(out)
    stem = f"gpu_{slug(found['device'])}"
    text = "\n".join(line[:WIDTH] for line in lines_of(found)) + "\n"
    (out / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / f"{stem}.txt").write_text(text, encoding="utf-8")
    print(text, end="")
    if found["device"] not in (DRY_RUN, UNKNOWN):
        for ending in ("json", "txt"):
            shutil.copy(out / f"{stem}.{ending}", REPOSITORY / "benchmarks" / "results")


def gather(out: Path) -> dict[str, Any]:
    """All that the steps have written, with the card's name first."""
    parts = {name: read_json(out / f"{name}.json") for name in PARTS}
    device = DRY_RUN if dry() else parts["environment"].get("device", UNKNOWN)
    try:
        steps = json.loads((out / "steps.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        steps = []
    return {"device": device, "steps": steps, **{name: part for name, part in parts.items() if part}}


def slug(device: str) -> str:
    """A card's name as a file's: "NVIDIA H100 80GB HBM3" is nvidia_h100_80gb_hbm3."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """The summary, line by line."""
    yield f"{found['device']}: {DRY_WARNING if found['device'] == DRY_RUN else 'measured'}"
    for step in found["steps"]:
        ended = "no time left" if step["exit_code"] is None else f"exit code {step['exit_code']}"
        yield f"step {step['step']:<16} {ended} after {step['seconds']} s"
    yield from _environment_lines(found.get("environment", {}))
    yield from _kernel_lines(found.get("kernel", {}))
    for name, part in found.items():
        if name.startswith("windows_"):
            yield from _window_lines(name.removeprefix("windows_"), part)


DRY_WARNING = "every script ran on the CPU with tiny sizes; no figure means anything"


def _environment_lines(part: dict[str, Any]) -> Iterator[str]:
    for name, row in part.get("ceilings", {}).items():
        yield f"ceiling {name}: {row}"
    failed = {name: told for name, told in part.get("imports", {}).items() if told != "imports"}
    yield f"imports that fail: {failed or 'none'}"


def _kernel_lines(part: dict[str, Any]) -> Iterator[str]:
    checks = part.get("check", {})
    failed = [name for name, row in checks.items() if not row["passed"]]
    yield f"kernel: {len(checks)} checks, failed: {failed or 'none'}"
    for name, row in part.get("speed", {}).items():
        yield f"  {name:<48} {row.get('us', row.get('failed'))} us, share of a copy {row.get('share_of_copy', '-')}"


def _window_lines(name: str, part: dict[str, Any]) -> Iterator[str]:
    yield f"{name}, {part.get('parameters')} weights, attention {part.get('best_attention')}"
    forms = part.get("forms", {})
    base = forms.get(BASELINE, {}).get("median_ms")
    for label, row in forms.items():
        ms = row.get("median_ms")
        if ms is None:
            yield f"  {label:<52} FAILED {row.get('failed', '')}"
        else:
            ratio = f"{base / ms:5.2f} x" if base else ""
            yield f"  {label:<52} {ms:>9.2f} ms {ratio} error {row['score_error']:.1e} {row.get('stages_ms', '')}"


if __name__ == "__main__":
    main()
