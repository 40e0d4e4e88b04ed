from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.cli import app
from tests.example_bundle import make_bundle

no_gpu = pytest.mark.skipif(bool(find_gpus().devices), reason="this machine has a GPU")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)], catch_exceptions=False)


def test_the_report_covers_machine_packages_and_targets() -> None:
    result = call()
    assert result.exit_code == 0
    for expected in ["Machine", "NVIDIA", "Packages", "Targets", "onnxruntime on the CPU", "tensorrt", "rtx"]:
        assert expected in result.stdout
    assert "\x1b" not in result.stdout
    assert all(len(line) <= 120 for line in result.stdout.splitlines())


@no_gpu
def test_what_runs_without_a_gpu_is_told_from_what_does_not() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tensorrt_rtx_bindings")
    abilities = {ability["target"]: ability for ability in json.loads(call("--json").stdout)["abilities"]}
    assert abilities["onnxruntime on the CPU"] == {"target": "onnxruntime on the CPU", "build": None, "run": None}
    assert abilities["rtx"]["build"] is None
    assert "no NVIDIA driver" in abilities["rtx"]["run"]
    assert abilities["tensorrt"]["build"]


def test_a_bundle_is_verified_with_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "heart.masksam")
    assert json.loads(call(bundle.path, "--json").stdout)["bundle"]["manifest_sha256"] == bundle.sha256
    assert "every file matches its hash" in call(bundle.path).stdout
    next(bundle.path.glob("*.onnx")).write_bytes(b"changed")
    with pytest.raises(BundleError):
        call(bundle.path)


def test_it_works_with_no_runtime_installed() -> None:
    """Every line says what to install; nothing ends the command."""
    code = (
        "import sys\n"
        "for name in ('onnxruntime', 'tensorrt', 'tensorrt_rtx_bindings', 'cuda', 'torch', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "from masksam_deploy.cli import main\n"
        "main(['doctor', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    problems = {package["name"]: package["problem"] for package in found["packages"]}
    assert "pip install 'masksam-deploy[cpu]'" in problems["ONNX Runtime"]
    assert "pip install 'masksam-deploy[rtx]'" in problems["TensorRT for RTX"]
    assert "tensorrt-cu" in problems["TensorRT"]
    assert all(ability["build"] and ability["run"] for ability in found["abilities"])
