"""The network of the repository on the scan of the repository: what `make demo` shows."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from masksam_deploy import Segmenter, read_volume, write_labels
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.choose import open_network
from masksam_deploy.engines.gate import validation_cases
from masksam_deploy.evaluation import evaluate_folders
from masksam_deploy.io.cases import find_scans
from masksam_deploy.runtimes.registry import BuildOptions, open_builder
from masksam_deploy.runtimes.spec import EngineSpec, Precision
from tests.conftest import LV_CHECKPOINT, ROOT

SAMPLE = ROOT / "examples" / "sunnybrook"


@pytest.fixture(scope="module")
def bundle(lv_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, which engines may be added to."""
    return shutil.copytree(lv_bundle, tmp_path_factory.mktemp("copy") / "lv.masksam")


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


def test_int8_on_a_cpu_passes_the_gate_and_infer_would_use_it(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    request = BuildRequest(
        spec=EngineSpec.of(loaded, "onnxruntime", "int8"),
        calibration=find_scans([SAMPLE / "scan"], 1),
        windows=8,
        validation=validation_cases(loaded),
    )
    (attempt,) = build_engine(loaded, open_builder("onnxruntime"), request).attempts
    assert attempt.verdict.passed
    (case,) = attempt.verdict.cases
    assert case.engine is not None
    assert case.engine["LV cavity"] is not None
    assert case.engine["LV cavity"] > 0.9
    network, choice = open_network(loaded)
    with closing(network):
        assert choice.engine is not None
        assert network.precision == "int8"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_all_three_graphs_build_for_rtx_gpus_without_one(bundle: Path, precision: Precision) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    loaded = Bundle.load(bundle)
    request = BuildRequest(
        spec=EngineSpec.of(loaded, "rtx", precision),
        options=BuildOptions(gpus=("sm89",)),
        calibration=find_scans([SAMPLE / "scan"], 1),
        windows=8,
        validation=None,  # judged in tests/engines and, on all held-out cases, in benchmarks/engines.py
    )
    built = build_engine(loaded, open_builder("rtx"), request).built
    assert set(built) == {"encoder", "prompt_generator", "decoder"}
    assert all(engine.precision_in_graph[precision] > 10 for engine in built.values())


def test_the_checkpoint_is_small_and_the_one_that_the_card_describes() -> None:
    data = LV_CHECKPOINT.read_bytes()
    assert len(data) <= 8_000_000
    assert hashlib.sha256(data).hexdigest() in (LV_CHECKPOINT.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
