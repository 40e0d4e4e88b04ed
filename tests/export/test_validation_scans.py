"""Scans that a bundle carries for the gate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from masksam_deploy import read_volume, write_labels
from masksam_deploy.base.errors import ExportError, MaskSamError
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.engines.gate import Case
from masksam_deploy.io.cases import ScanFiles
from masksam_deploy.io.write_scan import write_scan
from masksam_export import validation_scans
from masksam_export.validation_scans import add_validation
from tests.engines.small_bundle import ball_scan

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "sunnybrook"
LABELS = Labels(classes=(Label(name="background", value=0), Label(name="LV cavity", value=1)))


def sample() -> Case:
    return Case(ScanFiles("scan", (SAMPLE / "scan",)), SAMPLE / "reference.nii.gz")


def test_a_dicom_series_is_kept_as_voxels_and_geometry_only(tmp_path: Path) -> None:
    (case,) = add_validation(tmp_path, [sample()], LABELS, 1)
    assert (case.name, case.scans, case.reference) == (
        "case_1",
        ("validation/case_1_0000.nii.gz",),
        "validation/case_1_reference.nii.gz",
    )
    original, kept = read_volume(SAMPLE / "scan"), read_volume(tmp_path / case.scans[0])
    assert np.array_equal(original.channels_czyx, kept.channels_czyx)
    assert kept.geometry.origin_lps == pytest.approx(original.geometry.origin_lps, abs=1e-3)
    assert kept.geometry.spacing_xyz == pytest.approx(original.geometry.spacing_xyz, rel=1e-6)
    # The patient's identifiers of the DICOM files are nowhere.
    for path in (tmp_path / "validation").iterdir():
        import gzip

        assert b"SCD" not in gzip.decompress(path.read_bytes())
    assert json.dumps(case.model_dump())


def test_a_reference_on_another_grid_or_with_unknown_labels_is_refused(tmp_path: Path) -> None:
    scan, labels = ball_scan(0)
    write_scan(scan, 0, tmp_path / "scan.nii.gz")
    files = ScanFiles("scan", (tmp_path / "scan.nii.gz",))
    with pytest.raises(MaskSamError, match="of its scan, expected the same grid"):
        add_validation(tmp_path, [Case(files, SAMPLE / "reference.nii.gz")], LABELS, 1)
    write_labels(Volume(labels.array.astype(np.uint8) * 7, labels.geometry), tmp_path / "labels.nii.gz")
    with pytest.raises(MaskSamError, match="7"):
        add_validation(tmp_path, [Case(files, tmp_path / "labels.nii.gz")], LABELS, 1)
    with pytest.raises(ExportError, match="found 1 channels, expected 2"):
        add_validation(tmp_path, [Case(files)], LABELS, 2)


def test_scans_that_are_too_large_to_travel_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation_scans, "LIMIT", 1000)
    with pytest.raises(ExportError, match="they travel with the bundle"):
        add_validation(tmp_path, [sample()], LABELS, 1)
