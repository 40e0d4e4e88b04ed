"""Dice of a bundle on a folder of labelled scans, through the product's own path.

    python benchmarks/dice.py lv.masksam SCANS LABELS -o benchmarks/results/dice_lv_dicom_ed.json

Every label map LABELS/NAME.nii.gz needs a scan: SCANS/NAME_0000.nii.gz (nnU-Net's raw layout), SCANS/NAME.nii.gz, or a
folder with a DICOM series, SCANS/NAME or, for a NAME such as PATIENT_ED, SCANS/PATIENT/ED. Each is read as `infer`
reads it, segmented in ONNX Runtime with the defaults of `infer`, written, read again and compared by `evaluate`.
No speed is reported here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from masksam_deploy import Segmenter, read_volume, write_labels
from masksam_deploy.bench.machine import provenance
from masksam_deploy.evaluation import Evaluation, evaluate_folders
from masksam_deploy.evaluation.label_names import read_label_names

ENDING = ".nii.gz"


def main() -> None:
    """Segment, evaluate, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="Leave out label maps whose name does not contain this.")
    parser.add_argument("--no-tta", action="store_true", help="No mirroring.")
    arguments = parser.parse_args()
    references = [path for path in sorted(arguments.labels.glob(f"*{ENDING}")) if arguments.only in path.name]
    if not references:
        sys.exit(f"found no label maps NAME{ENDING} in {arguments.labels}")
    with tempfile.TemporaryDirectory() as name:
        found, wanted = Path(name) / "found", Path(name) / "wanted"
        found.mkdir()
        wanted.mkdir()
        with Segmenter(arguments.bundle, tta=not arguments.no_tta) as segmenter:
            for number, reference in enumerate(references, 1):
                case = reference.name.removesuffix(ENDING)
                labels, report = segmenter(read_volume(scan_of(case, arguments.scans)))
                write_labels(labels, found / reference.name)
                (wanted / reference.name).symlink_to(reference.resolve())
                print(f"\r{number} of {len(references)}", end="", flush=True)
        evaluation = evaluate_folders(found, wanted, names=read_label_names(arguments.bundle))
    result = {**summary(evaluation), "bundle": report.bundle, "settings": report.settings, **provenance()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print()
    for entry in evaluation.summary:
        if entry.mean_dice is None or entry.min_dice is None:
            print(f"{entry.name}: in no case")
        else:
            print(f"{entry.name}: Dice mean {entry.mean_dice:.4f}, worst {entry.min_dice:.4f}, {entry.counted} cases")
    print(f"wrote {arguments.output}")


def scan_of(case: str, scans: Path) -> Path:
    """The file or folder with the scan of a case."""
    files = [scans / f"{case}_0000{ENDING}", scans / f"{case}{ENDING}"]
    candidates = [*files, scans / case, scans.joinpath(*case.split("_"))]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        sys.exit(f"found no scan of '{case}', expected one of {', '.join(map(str, candidates))}")
    return found


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Means per class, and every case's Dice."""
    return {
        "classes": {
            entry.name: {
                "cases": entry.counted,
                "mean_dice": entry.mean_dice,
                "median_dice": entry.median_dice,
                "min_dice": entry.min_dice,
                "mean_hd95_mm": entry.mean_hd95_mm,
                "mean_asd_mm": entry.mean_asd_mm,
            }
            for entry in evaluation.summary
        },
        "cases": {
            case.pair.case: {metrics.name: metrics.dice for metrics in case.classes} for case in evaluation.cases
        },
    }


if __name__ == "__main__":
    main()
