"""`masksam-deploy infer` as a careful and as a careless user calls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.conftest import INTERRUPTIBLE

COMMAND = [sys.executable, "-m", "masksam_deploy"]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300, check=False
    )


def refusal(*arguments: object, cwd: Path | None = None) -> str:
    """The one line on stderr of a call that must fail as the user's error."""
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="module")
def scan(cardiac_case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five slices of the real scan, so that a run takes seconds."""
    image = SimpleITK.ReadImage(str(cardiac_case / "c_cardiac_0000.nii.gz"))
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    SimpleITK.WriteImage(image[:, :, 3:8], str(path))
    return path


@pytest.fixture(scope="module")
def finished(
    scan: Path, cardiac_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("out")
    result = run(
        "infer", scan, "-b", cardiac_bundle, "-o", folder / "seg.nii.gz", "--no-tta",
        "--overlay", folder / "overlay.png", "--report", folder / "report.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder, result


def test_infer_writes_labels_overlay_and_report_and_nothing_else(
    finished: tuple[Path, subprocess.CompletedProcess[str]], scan: Path
) -> None:
    folder, result = finished
    assert sorted(path.name for path in folder.iterdir()) == ["overlay.png", "report.json", "seg.nii.gz"]
    image, labels = SimpleITK.ReadImage(str(scan)), SimpleITK.ReadImage(str(folder / "seg.nii.gz"))
    assert labels.GetSize() == image.GetSize()
    assert labels.GetDirection() == image.GetDirection()
    assert (folder / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert "CPUExecutionProvider, float32" in result.stdout
    assert result.stderr == ""  # a pipe: no progress bar


def test_report_holds_hashes_volumes_timings_and_versions(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    report = json.loads((finished[0] / "report.json").read_text())
    array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(finished[0] / "seg.nii.gz")))
    assert {label["value"]: label["voxels"] for label in report["labels"]} == {
        value: int((array == value).sum()) for value in range(4)
    }
    assert len(report["files"]["labels"]["sha256"]) == 64
    assert {"read", "preprocess", "network", "write"} <= report["timings_s"].keys()
    assert {"onnxruntime", "masksam-deploy"} <= report["versions"].keys()


def test_json_goes_to_stdout_alone(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    result = run("infer", scan, "-b", cardiac_bundle, "-o", tmp_path / "seg.mha", "--no-tta", "--step", "1", "--json")
    assert json.loads(result.stdout)["settings"]["step"] == 1.0
    assert SimpleITK.ReadImage(str(tmp_path / "seg.mha")).GetSize()[2] == 5


def test_dicom_series_and_the_same_scan_as_nifti_give_the_same_labels(
    cardiac_bundle: Path, data: Path, tmp_path: Path
) -> None:
    series = next(folder for folder in sorted((data / "io" / "dicom").iterdir()) if folder.name == "oblique")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    image = SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32)
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    for source, target in ((series, "dicom.nii.gz"), (tmp_path / "scan.nii.gz", "nifti.nii.gz")):
        result = run("infer", source, "-b", cardiac_bundle, "-o", tmp_path / target, "--no-tta", "--step", "1")
        assert result.returncode == 0, result.stderr
    one, other = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("dicom.nii.gz", "nifti.nii.gz"))
    np.testing.assert_allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(one.GetDirection(), other.GetDirection(), atol=1e-5)
    same = SimpleITK.GetArrayFromImage(one) == SimpleITK.GetArrayFromImage(other)
    assert same.mean() > 0.999  # NIfTI rounds the spacing to float32


def test_output_over_the_scan_is_refused(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "scan.nii.gz"
    shutil.copy(scan, copy)
    before = copy.read_bytes()
    assert "the scan itself" in refusal("infer", copy, "-b", cardiac_bundle, "-o", "scan.nii.gz", cwd=tmp_path)
    assert copy.read_bytes() == before


@pytest.mark.parametrize(
    ("output", "expected"),
    [("seg.jpg", ".nii.gz"), ("no/such/folder/seg.nii.gz", "folder"), ("seg.mhd", ".mha"), ("seg", ".nii.gz")],
)
def test_output_that_cannot_be_written_is_refused_before_work(
    scan: Path, cardiac_bundle: Path, tmp_path: Path, output: str, expected: str
) -> None:
    started = time.perf_counter()
    assert expected in refusal("infer", scan, "-b", cardiac_bundle, "-o", tmp_path / output)
    assert time.perf_counter() - started < 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--overlay", "--report"])
def test_failure_of_a_later_output_leaves_all_earlier_ones_as_they_were(
    scan: Path, cardiac_bundle: Path, tmp_path: Path, option: str
) -> None:
    labels, other = tmp_path / "seg.nii.gz", tmp_path / ("o.png" if option == "--overlay" else "r.json")
    labels.write_bytes(b"earlier labels")
    other.write_bytes(b"earlier output")
    broken = {
        "--overlay": "work.draw_overlay = full\n",
        "--report": "real = work.described\nwork.described = lambda path, name=None: full() if name else real(path)\n",
    }
    script = (
        "import sys, masksam_deploy.cli.infer_scan, masksam_deploy.cli as cli\n"
        "import masksam_deploy.outputs.one_scan as work\n"
        "def full(*_, **__): raise OSError(28, 'No space left on device')\n"
        f"{broken[option]}"
        "cli.main(sys.argv[1:])"
    )
    arguments = ["infer", scan, "-b", cardiac_bundle, "-o", labels, option, other, "--no-tta", "--step", "1"]
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 2
    assert "full" in result.stderr
    assert labels.read_bytes() == b"earlier labels"
    assert other.read_bytes() == b"earlier output"
    assert len(list(tmp_path.iterdir())) == 2


def test_report_must_be_json_so_that_it_replaces_no_patient_data(
    scan: Path, cardiac_bundle: Path, tmp_path: Path
) -> None:
    message = refusal("infer", scan, "-b", cardiac_bundle, "-o", tmp_path / "s.nii", "--report", tmp_path / "1.dcm")
    assert ".json" in message


def test_outputs_inside_the_bundle_are_refused(scan: Path, cardiac_bundle: Path) -> None:
    before = sorted(cardiac_bundle.iterdir())
    message = refusal("infer", scan, "-b", cardiac_bundle, "-o", cardiac_bundle / "seg.nii.gz")
    assert "inside the bundle" in message
    assert sorted(cardiac_bundle.iterdir()) == before


def test_one_file_for_two_channels_is_refused(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    assert "two channels" in refusal("infer", scan, "-c", scan, "-b", cardiac_bundle, "-o", tmp_path / "s.nii")


@pytest.mark.parametrize("step", ["nan", "0", "1e-9", "1.5", "inf"])
def test_absurd_steps_are_refused(scan: Path, cardiac_bundle: Path, tmp_path: Path, step: str) -> None:
    result = run("infer", scan, "-b", cardiac_bundle, "-o", tmp_path / "s.nii", "--step", step)
    assert result.returncode == 2
    assert "0.05 to 1" in result.stderr


def test_running_writes_nothing_into_the_users_home(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    result = subprocess.run(
        [*COMMAND, "infer", scan, "-b", cardiac_bundle, "-o", tmp_path / "s.nii", "--no-tta", "--step", "1"],
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr == ""
    assert list(home.rglob("*")) == []


def test_overlay_must_be_a_png(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    message = refusal("infer", scan, "-b", cardiac_bundle, "-o", tmp_path / "s.nii", "--overlay", tmp_path / "o.gif")
    assert ".png" in message


def test_missing_scan_and_missing_bundle_are_named(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii.gz"
    assert "nothing.nii" in refusal("infer", "nothing.nii", "-b", cardiac_bundle, "-o", out)
    assert "nothing.masksam" in refusal("infer", scan, "-b", "nothing.masksam", "-o", out)
    assert not out.exists()


def test_scan_larger_than_max_ram_is_refused(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    message = refusal("infer", scan, "-b", cardiac_bundle, "-o", tmp_path / "seg.nii.gz", "--max-ram", "1M")
    assert "voxels" in message
    assert "--max-ram" in message


def test_wrong_number_of_channels_is_refused_with_their_names(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    message = refusal("infer", scan, "-c", "more.nii.gz", "-b", cardiac_bundle, "-o", tmp_path / "seg.nii.gz")
    assert "cineMRI" in message
    assert "leave out" in message


def test_cuda_without_cuda_is_an_error_not_a_fallback(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    message = refusal("infer", scan, "-b", cardiac_bundle, "-o", tmp_path / "seg.nii.gz", "--device", "cuda")
    assert "masksam-deploy[cuda]" in message


def test_damaged_bundle_is_refused(scan: Path, cardiac_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.masksam"
    shutil.copytree(cardiac_bundle, copy)
    with (copy / "decoder.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    assert "decoder.onnx" in refusal("infer", scan, "-b", copy, "-o", tmp_path / "seg.nii.gz")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_nothing_behind(
    cardiac_case: Path, cardiac_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    scan = cardiac_case / "c_cardiac_0000.nii.gz"
    arguments = ["infer", scan, "-b", cardiac_bundle, "-o", "seg.nii.gz", "--overlay", "o.png", "--report", "r.json"]
    process = subprocess.Popen(
        [*INTERRUPTIBLE, *map(str, arguments)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(4)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []
