"""What the profiles of `infer` cost in Dice, on the repository's model and scans that it never saw.

    python -m benchmarks.profiles DATASET

DATASET is the folder that `masksam-deploy prepare-sample-data SOURCE -o DATASET --data sunnybrook` makes. The model in
models/masksam-tiny-lv is exported as `make demo` does it; its fp16 and int8 engines for ONNX Runtime's CPU are
calibrated on imagesTr and judged on the bundle's own validation scan. Every scan of imagesTs is then segmented in each
precision at each profile's step (in float32 at others, too, to choose them by), and compared with labelsTs. Cost is the
Dice that is lost against the profile `accurate`, scan by scan; gains count as negative. Two files are written: all
figures (benchmarks/results/profiles.json), and what `infer --profile` prints (models/masksam-tiny-lv/measured.json).

The work is given as network runs per scan. No speed is reported here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.dice import ENDING
from benchmarks.engines import case_of
from masksam_deploy import Segmenter, read_volume
from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.bench.machine import provenance
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Cost, Measured
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.choose import open_network
from masksam_deploy.engines.gate import Case, validation_cases
from masksam_deploy.engines.profiles import PROFILES, definitions
from masksam_deploy.io.cases import ScanFiles, find_scans
from masksam_deploy.metrics.label_maps import check_same_grid, read_label_map
from masksam_deploy.metrics.overlap import dice_per_class
from masksam_deploy.runtimes.registry import open_builder
from masksam_deploy.runtimes.spec import PRECISIONS, EngineSpec, Precision
from masksam_deploy.scan_path.report import label_names

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "models" / "masksam-tiny-lv" / "checkpoint_final.pth"
SAMPLE = ROOT / "examples" / "sunnybrook"
FIGURES = CHECKPOINT.with_name("measured.json")
SMALLER: tuple[Precision, ...] = ("fp16", "int8")


@dataclass(frozen=True)
class Run:
    """One way to run, on all scans.

    Attributes:
        step, precision: the way.
        mirror_axes: that were mirrored along.
        dice: of each scan, the mean over its classes.
        runs: of the network, for each scan.
    """

    step: float
    precision: Precision
    mirror_axes: tuple[int, ...]
    dice: dict[str, float]
    runs: dict[str, int]


def main() -> None:
    """Build, measure, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=float, nargs="+", default=[0.5, 0.625, 0.75, 1.0], help="Of float32.")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "profiles.json")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="For `export --measured`.")
    arguments = parser.parse_args()
    steps = sorted({profile.step for profile in PROFILES.values()})
    ways: list[tuple[Precision, float]] = [("fp32", step) for step in sorted({*steps, *arguments.steps})]
    ways += [(precision, step) for precision in SMALLER for step in steps]
    cases = [
        case_of(path, arguments.dataset / "imagesTs")
        for path in sorted((arguments.dataset / "labelsTs").glob(f"*{ENDING}"))
    ]
    if not cases:
        sys.exit(f"found no label maps NAME{ENDING} in {arguments.dataset / 'labelsTs'}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = exported(Path(folder))
        engines = build_engines(bundle, find_scans([arguments.dataset / "imagesTr"], bundle.channels))
        runs = [measured(bundle, cases, step, precision, tta=False) for precision, step in ways]
        accurate = PROFILES["accurate"]
        reference = next(run for run in runs if (run.step, run.precision) == (accurate.step, accurate.precision))
        if bundle.manifest.mirror_axes:
            reference = measured(bundle, cases, accurate.step, "fp32", tta=accurate.tta)
    costs = [cost_of(run, reference) for run in runs]
    content = {
        "bundle": {"name": bundle.manifest.name, "manifest_sha256": bundle.sha256},
        "engines": engines,
        "profiles": definitions(),
        "accurate": case_figures(reference),
        "ways": [cost.model_dump() | case_figures(run) for cost, run in zip(costs, runs, strict=True)],
        **provenance(),
    }
    write_json(arguments.output, content)
    figures = Measured(
        source_sha256=bundle.manifest.provenance.source_sha256,
        scans=len(cases),
        where="ONNX Runtime on a CPU",
        mirror_axes=bundle.manifest.mirror_axes,
        commit=content["commit"],
        date=content["date"],
        costs=tuple(costs),
    )
    write_json(arguments.figures, figures.model_dump(mode="json"))
    tell(costs)
    print(f"wrote {arguments.output} and {arguments.figures}")


def exported(folder: Path) -> Bundle:
    """The repository's model as a bundle that carries its validation scan."""
    from masksam_export.families.masksam.checkpoint import load_checkpoint
    from masksam_export.families.masksam.exportable import exportable
    from masksam_export.onnx_export import export_bundle

    case = Case(ScanFiles("SCD0000501", (SAMPLE / "scan",)), SAMPLE / "reference.nii.gz")
    return export_bundle(exportable(load_checkpoint(CHECKPOINT)), folder / "lv.masksam", validation=[case])


def build_engines(bundle: Bundle, calibration: Sequence[ScanFiles]) -> dict[str, Any]:
    """An engine of each smaller precision that is measured, and what the gate said."""
    told: dict[str, Any] = {}
    for precision in SMALLER:
        request = BuildRequest(
            spec=EngineSpec.of(bundle, "onnxruntime", precision),
            calibration=calibration,
            validation=validation_cases(bundle),
            strict=True,  # one that falls back is not of this precision
        )
        result = build_engine(bundle, open_builder("onnxruntime"), request)
        told[precision] = {"gate_mean_dice_lost": result.attempts[-1].verdict.mean_loss}
        print(f"built {precision}", flush=True)
    return told


def measured(bundle: Bundle, cases: Sequence[Case], step: float, precision: Precision, *, tta: bool) -> Run:
    """Segment every case in one way."""
    network, _ = open_network(bundle, "onnxruntime", precision)
    names = label_names(bundle.manifest.labels)
    dice, runs = {}, {}
    with Segmenter(bundle, network=network, step=step, tta=tta) as segmenter:
        for case in cases:
            labels, report = segmenter(read_volume(case.scan.paths))
            assert case.reference is not None
            reference = read_label_map(case.reference, names)
            check_same_grid(reference.geometry, labels.geometry, str(case.reference), "its scan")
            found = dice_per_class(labels.array, reference.array, names).values()
            dice[case.scan.name] = fmean(value for value in found if value is not None)
            runs[case.scan.name] = report.scan["windows"] << len(segmenter.mirror_axes)
        print(f"{precision}, step {step:g}: mean Dice {fmean(dice.values()):.4f}", flush=True)
        return Run(step, precision, segmenter.mirror_axes, dice, runs)


def cost_of(run: Run, reference: Run) -> Cost:
    """What a run lost against the reference."""
    lost = [reference.dice[case] - dice for case, dice in run.dice.items()]
    return Cost(
        step=run.step,
        precision=run.precision,
        mean_dice=round(fmean(run.dice.values()), 6),
        mean_cost=round(fmean(lost), 6),
        worst_cost=round(max(lost), 6),
        runs_per_scan=round(fmean(run.runs.values()), 2),
    )


def case_figures(run: Run) -> dict[str, Any]:
    """Scan by scan."""
    return {"mirror_axes": list(run.mirror_axes), "dice": run.dice, "runs": run.runs}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """For people, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tell(costs: Sequence[Cost]) -> None:
    """As a table."""
    print("precision  step   runs/scan  mean Dice  mean cost  worst cost")
    for cost in sorted(costs, key=lambda cost: (PRECISIONS.index(cost.precision), cost.step)):
        print(
            f"{cost.precision:<9}  {cost.step:<5g}  {cost.runs_per_scan:>9.2f}  {cost.mean_dice:>9.4f}  "
            f"{cost.mean_cost:>9.4f}  {cost.worst_cost:>10.4f}"
        )


if __name__ == "__main__":
    main()
