"""Commands that read scans print what was noticed about them, as infer does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy.cli import app
from masksam_deploy.io import read_volume
from tests.engines.small_bundle import ball_scan, make_bundle

QUICK = ("--repeats", "1", "--scan-repeats", "0", "--windows", "1", "--threads", "1", "--no-cold", "--no-roofline")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("warnings") / "balls.masksam", cases=1).path


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def write_two_places(path: Path, array_zyx: np.ndarray) -> str:
    """A NIfTI file whose header states two places; returns the warning about it."""
    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(array_zyx.transpose(2, 1, 0), np.diag([1.0, 1, 1, 1]))
    image.set_qform(np.diag([1.0, 1, 1, 1]), 1)
    image.set_sform(np.array([[0.0, -1, 0, 9], [1, 0, 0, -7], [0, 0, 1, 5], [0, 0, 0, 1]]), 1)
    nibabel.save(image, path)
    (warning,) = read_volume(path).warnings
    return warning


def test_evaluate_prints_the_warnings_of_predictions_references_and_scans(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    labels = (np.asarray(ball_scan(0)[0].array, np.float32) > 0).astype(np.uint8)
    for folder in ("found", "wanted"):
        warning = write_two_places(tmp_path / folder / "a.nii", labels)
    write_two_places(tmp_path / "scans" / "a.nii", ball_scan(0)[0].channels_czyx[0])
    arguments = ("evaluate", tmp_path / "found", tmp_path / "wanted")
    plain = call(*arguments)
    drawn = call(*arguments, "--scans", tmp_path / "scans", "--plot", tmp_path / "all.png", "--json")
    for result, count in ((plain, 2), (drawn, 3)):
        lines = result.stderr.splitlines()
        assert len(lines) == count
        for line, what in zip(lines, ("reference", "prediction", "scan"), strict=False):
            assert line.startswith(f"warning: case 'a', the {what}: ")
            assert "the sform is used" in line
    assert "the sform is used" in warning
    assert json.loads(drawn.stdout)["cases"][0]["classes"][0]["dice"] == 1


def test_evaluate_prints_the_warnings_before_it_refuses_other_grids(tmp_path: Path) -> None:
    labels = (np.asarray(ball_scan(0)[0].array, np.float32) > 0).astype(np.uint8)
    write_two_places(tmp_path / "found" / "a.nii", labels)
    (tmp_path / "wanted").mkdir()
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), np.diag([1.0, 1, 1, 1])), tmp_path / "wanted" / "a.nii")
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "found"), str(tmp_path / "wanted")])
    assert "expected the same grid" in str(result.exception)
    assert "the sform is used" in result.stderr


def test_compare_prints_the_warnings_of_every_scan_once(bundle: Path, tmp_path: Path) -> None:
    warning = write_two_places(tmp_path / "scan.nii", ball_scan(0)[0].channels_czyx[0])
    result = call("compare", bundle, bundle, tmp_path / "scan.nii", "--no-tta", "--threads", 1, "--json")
    assert result.stderr == f"warning: scan.nii: {warning}\n"
    assert json.loads(result.stdout)["worst"]["agreement"] == 1


def test_bench_prints_the_warnings_of_its_scan_once(bundle: Path, tmp_path: Path) -> None:
    warning = write_two_places(tmp_path / "scan.nii", ball_scan(0)[0].channels_czyx[0])
    result = call("bench", bundle, tmp_path / "scan.nii", *QUICK)
    assert result.stderr == f"warning: {warning}\n"


def test_a_warning_has_a_line_of_its_own_beside_a_progress_bar(bundle: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="terminals of this kind exist on Unix only")
    write_two_places(tmp_path / "scan.nii", ball_scan(0)[0].channels_czyx[0])
    command = [sys.executable, "-m", "masksam_deploy", "compare", bundle, bundle, tmp_path / "scan.nii", "--no-tta"]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.returncode == 0, text
    before, _, after = text.partition(b"warning: scan.nii: ")
    assert before.endswith(b"\r\x1b[2K")  # the bar's line was cleared
    assert b"\r\n" in after[:400]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux, after the other side was closed
        return b""
