"""A comparison as plain values for JSON, and as a CSV table."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from masksam_deploy.comparison.comparison import Comparison
from masksam_deploy.comparison.side import Side
from masksam_deploy.scan_path.report import runtime_versions

DEFINITIONS = {
    "agreement": "share of all voxels with the same label on both sides",
    "foreground_agreement": "the same over the voxels that either side labels with anything but 0; null if none",
    "dice": "2 |A and B| / (|A| + |B|), in voxels; null if both are empty (not counted), 0 if one is",
    "disagreeing_voxels": "of a scan: with different labels; of a class: in one of the two label maps only",
}
_COLUMNS = (
    "scan",
    "agreement",
    "foreground_agreement",
    "value",
    "name",
    "dice",
    "voxels_a",
    "voxels_b",
    "disagreeing_voxels",
    "disagreeing_ml",
)


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything about a comparison as plain values.

    Args:
        comparison: finished.

    Returns:
        Values for `json.dumps`, with the definitions of all figures; figures that are not defined are None.
    """
    lowest, foreground = comparison.lowest_agreement, comparison.lowest_foreground_agreement
    return {
        "schema_version": "1.0",
        "definitions": DEFINITIONS,
        "a": _side(comparison.a, comparison.settings_a),
        "b": _side(comparison.b, comparison.settings_b),
        "worst": {
            "agreement": lowest.overlap.agreement,
            "agreement_scan": str(lowest.scan),
            "foreground_agreement": foreground.overlap.foreground_agreement if foreground else None,
            "foreground_agreement_scan": str(foreground.scan) if foreground else None,
            "classes": [
                asdict(row) | {"lowest_dice_scan": str(row.lowest_dice_scan) if row.lowest_dice_scan else None}
                for row in comparison.classes
            ],
        },
        "scans": [{"scan": str(scan.scan), **asdict(scan.overlap)} for scan in comparison.scans],
        "versions": runtime_versions(),
    }


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write a table with one row per scan and class; figures that are not defined are empty cells.

    Args:
        comparison: finished.
        path: the CSV file to write; an existing one is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for scan in comparison.scans:
            whole = {
                "scan": str(scan.scan),
                "agreement": scan.overlap.agreement,
                "foreground_agreement": scan.overlap.foreground_agreement,
            }
            writer.writerows(whole | asdict(entry) for entry in scan.overlap.classes)


def _side(side: Side, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bundle": str(side.bundle.path),
        "name": side.bundle.manifest.name,
        "manifest_sha256": side.bundle.sha256,
        "settings": dict(settings),
    }
