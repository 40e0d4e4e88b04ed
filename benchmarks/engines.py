"""What fp16 and int8 cost in Dice on held-out scans, by the product's own gate.

    python -m benchmarks.engines lv.masksam --calibration DATASET/imagesTr --scans DATASET/imagesTs \
        --labels DATASET/labelsTs -o benchmarks/results/engines_lv_png.json

Builds an engine per precision in a copy of the bundle, calibrated on scans that the network was trained on, so that
none is judged that was calibrated on, and judged on every labelled scan (found as `benchmarks/dice.py` does). With
--sensitivity, layers are ranked first and the worst stay out of int8. No speed is reported here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.dice import ENDING, scan_of
from masksam_deploy.bench.machine import provenance
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.build import BuildRequest, BuildResult, build_engine
from masksam_deploy.engines.calibration import calibration_windows
from masksam_deploy.engines.gate import Case, Verdict
from masksam_deploy.engines.quantisation import Calibrator
from masksam_deploy.engines.sensitivity import measure_sensitivity
from masksam_deploy.io.cases import ScanFiles, find_scans
from masksam_deploy.runtimes.registry import BuildOptions, open_builder
from masksam_deploy.runtimes.spec import EngineSpec, Precision, Target


def main() -> None:
    """Build, judge, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--only", default="", help="Leave out label maps whose name does not contain this.")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "int8"], choices=["fp16", "bf16", "int8"])
    parser.add_argument("--target", default="onnxruntime", choices=["onnxruntime", "rtx"])
    parser.add_argument("--gpu", nargs="+", default=[], help="For target rtx.")
    parser.add_argument("--calibrator", default="percentile", choices=["percentile", "entropy"])
    parser.add_argument("--sensitivity", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    references = [path for path in sorted(arguments.labels.glob(f"*{ENDING}")) if arguments.only in path.name]
    if not references:
        sys.exit(f"found no label maps NAME{ENDING} in {arguments.labels}")
    cases = [case_of(path, arguments.scans) for path in references]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / arguments.bundle.name
        shutil.copytree(arguments.bundle, copy, ignore=shutil.ignore_patterns("engines"))
        bundle = Bundle.load(copy)
        calibration = find_scans([arguments.calibration], bundle.channels)
        excluded: dict[str, list[str]] = {}
        if arguments.sensitivity:
            windows = calibration_windows(bundle, calibration)
            found = measure_sensitivity(bundle, windows, calibrator=cast("Calibrator", arguments.calibrator))
            excluded = dict(found.excluded)
        results = {}
        for precision in arguments.precisions:
            request = BuildRequest(
                spec=EngineSpec.of(bundle, cast("Target", arguments.target), cast("Precision", precision)),
                options=BuildOptions(gpus=tuple(arguments.gpu)),
                calibration=calibration,
                validation=cases,
                calibrator=cast("Calibrator", arguments.calibrator),
                excluded=excluded,
            )
            result = build_engine(bundle, open_builder(request.spec.target), request)
            results[precision] = described(result)
            print(json.dumps({precision: results[precision]["accepted"]["summary"]}))
    content = {
        "bundle": {"name": bundle.manifest.name, "manifest_sha256": bundle.sha256},
        "target": arguments.target,
        "calibration": {"scans": len(calibration), "calibrator": arguments.calibrator},
        "excluded_from_int8": excluded,
        "precisions": results,
        **provenance(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


def case_of(reference: Path, scans: Path) -> Case:
    """A labelled scan as the gate takes it."""
    name = reference.name.removesuffix(ENDING)
    return Case(ScanFiles(name, (scan_of(name, scans),)), reference)


def described(result: BuildResult) -> dict[str, Any]:
    """Every attempt in short, the accepted one case by case."""
    last = result.attempts[-1]
    return {
        "accepted": {"precisions": dict(last.precisions), "summary": summary(last.verdict), **last.verdict.to_dict()},
        "fell_back_from": [
            {"precisions": dict(attempt.precisions), "summary": summary(attempt.verdict)}
            for attempt in result.attempts[:-1]
        ],
        "bytes": {name: engine.bytes for name, engine in result.built.items()},
    }


def summary(verdict: Verdict) -> dict[str, Any]:
    """The figures that the tables show."""
    between = [dice for case in verdict.cases for dice in case.between.values() if dice is not None]
    return {
        "cases": len(verdict.cases),
        "mean_dice_float32": mean_of([case.float32 or {} for case in verdict.cases]),
        "mean_dice_engine": mean_of([case.engine or {} for case in verdict.cases]),
        "mean_dice_lost": verdict.mean_loss,
        "most_dice_lost": verdict.worst_case[2],
        "mean_dice_with_float32": sum(between) / len(between),
        "least_dice_with_float32": min(between),
        "lowest_agreement": min(case.agreement for case in verdict.cases),
    }


def mean_of(cases: Sequence[dict[str, float | None]]) -> float | None:
    """Over all cases and classes that count."""
    dice = [value for case in cases for value in case.values() if value is not None]
    return sum(dice) / len(dice) if dice else None


if __name__ == "__main__":
    main()
