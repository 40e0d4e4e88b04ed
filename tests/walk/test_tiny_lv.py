"""The network of the repository on the scan of the repository: what `make demo` shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from masksam_deploy import Segmenter, read_volume, write_labels
from masksam_deploy.evaluation import evaluate_folders

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "models" / "masksam-tiny-lv" / "checkpoint_final.pth"
SAMPLE = ROOT / "examples" / "sunnybrook"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from masksam_export.checkpoint import load_checkpoint
    from masksam_export.onnx_export import export_bundle

    return export_bundle(load_checkpoint(CHECKPOINT), tmp_path_factory.mktemp("lv") / "lv.masksam").path


def test_a_held_out_dicom_scan_gets_the_dice_that_the_demo_promises(bundle: Path, tmp_path: Path) -> None:
    with Segmenter(bundle) as segmenter:
        labels, report = segmenter(read_volume(SAMPLE / "scan"))
    write_labels(labels, tmp_path / "labels.nii.gz")
    evaluation = evaluate_folders(tmp_path / "labels.nii.gz", SAMPLE / "reference.nii.gz")
    (cavity,) = evaluation.cases[0].classes
    assert cavity.dice is not None
    assert cavity.dice > 0.85
    # A healthy to failing left ventricle at the end of diastole; a wrong spacing would leave this range.
    assert 50 < cavity.volume_prediction_ml < 450
    assert [label.name for label in report.labels if label.value] == ["LV cavity"]


def test_the_checkpoint_is_small_and_the_one_that_the_card_describes() -> None:
    data = CHECKPOINT.read_bytes()
    assert len(data) <= 8_000_000
    assert hashlib.sha256(data).hexdigest() in (CHECKPOINT.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
