"""An evaluation as plain values for JSON, and as a CSV table."""

from __future__ import annotations

import csv
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from masksam_deploy.base.version import __version__
from masksam_deploy.evaluation.evaluation import Evaluation
from masksam_deploy.evaluation.metrics import DEFINITIONS, ClassMetrics

_DIGITS = 6
"""Digits after the point: a nanometre, far below what one voxel changes."""
_COLUMNS = (
    "case",
    "value",
    "name",
    "status",
    "dice",
    "iou",
    "hd95_mm",
    "asd_mm",
    "volume_prediction_ml",
    "volume_reference_ml",
    "volume_difference_ml",
)


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Everything about an evaluation as plain values.

    Args:
        evaluation: finished.

    Returns:
        Values for `json.dumps`, with the definitions of all figures; figures that are not defined are None.
    """
    return {
        "schema_version": "1.0",
        "definitions": DEFINITIONS,
        "classes": [{"value": value, "name": name} for value, name in evaluation.classes.items()],
        "summary": [_rounded(asdict(row)) for row in evaluation.summary],
        "cases": [
            {
                "case": case.pair.case,
                "prediction": str(case.pair.prediction),
                "reference": str(case.pair.reference),
                "classes": [_plain(entry) for entry in case.classes],
            }
            for case in evaluation.cases
        ],
        "left_out": {
            "predictions_without_reference": list(evaluation.only_predictions),
            "references_without_prediction": list(evaluation.only_references),
        },
        "versions": {
            "masksam-deploy": __version__,
            "numpy": np.__version__,
            "SimpleITK": SimpleITK.Version_VersionString(),
            "python": platform.python_version(),
        },
    }


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write a table with one row per case and class; figures that are not defined are empty cells.

    Args:
        evaluation: finished.
        path: the CSV file to write; an existing one is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in evaluation.cases:
            writer.writerows({"case": case.pair.case, **_plain(entry)} for entry in case.classes)


def _plain(entry: ClassMetrics) -> dict[str, Any]:
    return _rounded(asdict(entry) | {"volume_difference_ml": entry.volume_difference_ml})


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, _DIGITS) if isinstance(value, float) else value for key, value in values.items()}
