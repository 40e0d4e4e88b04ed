"""`masksam-deploy export` as a person and as a script call it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli import main
from masksam_kernels.pack import read_pack
from tests.conftest import INTERRUPTIBLE
from tests.example_kernels import make_pack

COMMAND = [sys.executable, "-m", "masksam_deploy", "export"]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=600, check=False
    )


def test_export_names_the_bundle_after_the_checkpoint_and_reports_as_json(cardiac_case: Path, tmp_path: Path) -> None:
    shutil.copy(cardiac_case / "checkpoint_final.pth", tmp_path / "lv.pth")
    make_pack(tmp_path / "lv.kernels", {8, 16})
    result = run("lv.pth", "--json", "--adapters", "node", "--kernels", "lv.kernels", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["provenance"]["source_name"] == "lv.pth"
    assert "network: p256" in result.stderr
    bundle = Bundle.load(tmp_path / "lv.masksam")
    assert bundle.sha256 == summary["manifest_sha256"]
    assert bundle.patch_size == (4, 128, 128)
    assert bundle.kernels is not None
    assert {kernel.channels for kernel in read_pack(bundle.kernels).kernels} == {8, 16}
    decoder = onnx.load(tmp_path / "lv.masksam" / "decoder.onnx")
    assert "DepthConvAdapter3d" in {node.op_type for node in decoder.graph.node}


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    result = run("missing.pth", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert "not a file" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path,
    cardiac_bundle: Path,
    cardiac_case: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: another one would load PyTorch for every call."""
    checkpoint = cardiac_case / "checkpoint_final.pth"
    monkeypatch.chdir(tmp_path)
    calls: list[tuple[list[object], str]] = [
        ([checkpoint, "-o", cardiac_bundle], "--force"),
        ([checkpoint, "--adapters", "node", "--kernels", "missing.kernels"], "is no kernel pack"),
        ([checkpoint, "-o", "no/such/folder/x.masksam"], "folder"),
        ([cardiac_bundle / "manifest.json"], "cannot be read"),
    ]
    for arguments, expected in calls:
        with pytest.raises(SystemExit) as ended:
            main(["export", *map(str, arguments)])
        told = capsys.readouterr().err
        assert ended.value.code == 2, told
        last = told.splitlines()[-1]
        assert last.startswith("error: ")
        assert expected in last
        assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_interrupting_an_export_leaves_nothing_behind(cardiac_case: Path, tmp_path: Path) -> None:
    arguments = [*INTERRUPTIBLE, "export", str(cardiac_case / "checkpoint_final.pth"), "-o", "x.masksam"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert list(tmp_path.iterdir()) == []
