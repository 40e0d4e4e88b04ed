"""The scripts for a machine with a GPU work at the first try: here they run on the CPU, with tiny sizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the 'export' extra")
pytest.importorskip("triton", reason="needs the 'kernels' extra")

from benchmarks.gpu.install import unpack
from benchmarks.gpu.prepare import PACKAGES, pack, pinned
from benchmarks.gpu.results import FAILED, Results
from benchmarks.gpu.run import PLANS, STEPS
from benchmarks.gpu.summary import slug

ROOT = Path(__file__).parents[2]
SAME_SCRIPTS = {"vit_h_256", "vit_h_compiled"}
"""Steps that run scripts which other steps run on networks of the same layouts."""


def run(out: Path, *steps: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRY": "1", "OUT": str(out), "SITE": str(out / "site"), **variables}
    command = [sys.executable, "-m", "benchmarks.gpu.run", *steps]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a dry run wrote."""
    out = tmp_path_factory.mktemp("gpu")
    done = run(out, *(name for name in STEPS if name not in SAME_SCRIPTS))
    assert done.returncode == 0, done.stdout + (out / "log.txt").read_text(encoding="utf-8")[-4000:]
    content: dict[str, Any] = json.loads((out / "gpu_dry_run.json").read_text(encoding="utf-8"))
    assert (out / "gpu_dry_run.txt").read_text(encoding="utf-8") in done.stdout
    return content


def test_every_step_of_a_dry_run_succeeds(found: dict[str, Any]) -> None:
    assert {row["step"]: row["exit_code"] for row in found["steps"]} == dict.fromkeys(STEPS.keys() - SAME_SCRIPTS, 0)
    assert set(PLANS["first"]) | set(PLANS["second"]) == set(STEPS)


def test_every_form_of_a_window_is_the_same_function(found: dict[str, Any]) -> None:
    for network, exact in (("acdc", 3), ("amos", 2)):  # of one network the compiled form, too
        forms = found[f"windows_{network}"]["forms"]
        errors = [row["score_error"] for name, row in forms.items() if "AMP" not in name]
        assert len(errors) == exact
        assert max(errors) < 1e-5
        assert all(row["finite"] and row["passed"] for row in forms.values())
        for kind in ("windowed", "global"):
            assert max(row["error"] for row in found[f"windows_{network}"][f"attention_{kind}"].values()) < 1e-5


def test_the_kernel_is_checked_before_it_is_timed(found: dict[str, Any]) -> None:
    assert len(found["kernel"]["check"]) == 11
    assert len(found["sanitizer"]["one"]) == 4
    assert all(row["passed"] for row in [*found["kernel"]["check"].values(), *found["sanitizer"]["one"].values()])
    timed = {name.removeprefix("dry run | ") for name, row in found["kernel"]["speed"].items() if row["us"]["warm"] > 0}
    assert timed >= {"copy", "eager", "fused", "GELU, then fused", "GELU, then early-GELU kernel"}


def test_tests_are_chosen_by_names_that_exist(found: dict[str, Any]) -> None:
    """`machinery` chooses by words of test names, which change."""
    assert found["tests"]["machinery"]["chosen"] == 5
    assert found["tests"]["gpu"]["chosen"] > 10
    assert found["tests"]["kernels"]["chosen"] > 3


def test_everything_that_a_gpu_machine_needs_is_imported(found: dict[str, Any]) -> None:
    assert set(found["environment"]["imports"].values()) == {"imports"}
    assert {"export", "train"} <= set(found["environment"]["commands"])


def test_a_run_of_which_a_step_fails_says_so_and_fails(tmp_path: Path) -> None:
    """Without Triton's interpreter the kernel cannot run on a CPU."""
    done = run(tmp_path, "sanitizer", TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert "failed: sanitizer" in done.stdout
    assert "step sanitizer        exit code 3" in done.stdout
    assert not list((ROOT / "benchmarks" / "results").glob("gpu_dry_run*"))


@pytest.mark.parametrize(("value", "code"), [({"passed": True}, 0), ({"passed": False}, FAILED), (None, FAILED)])
def test_a_script_fails_if_one_of_its_measurements_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: dict[str, bool] | None, code: int
) -> None:
    """None: the measurement raises an error. The next one is made and written down all the same."""
    monkeypatch.setenv("OUT", str(tmp_path))

    def measure() -> dict[str, bool]:
        if value is None:
            raise ValueError("off by 1, allowed 0")
        return value

    results = Results("some")
    results.attempt("forms", "first", measure)
    results.attempt("forms", "second", lambda: {"passed": True})
    with pytest.raises(SystemExit) as caught:
        results.finish()
    assert caught.value.code == code
    written = json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))["forms"]
    assert written["first"]["passed"] == (code == 0)
    assert written["second"]["passed"]


def test_a_packed_wheel_unpacks_to_the_same_files(tmp_path: Path) -> None:
    files = {"package/__init__.py": b"value = 1\n", "package/_native.so": bytes(range(256)) * 64}
    with zipfile.ZipFile(tmp_path / "package-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    pack(tmp_path / "package-1.0-py3-none-any.whl", tmp_path / "package.tar.xz")
    unpack(tmp_path, tmp_path / "site")
    assert {name: (tmp_path / "site" / name).read_bytes() for name in files} == files


def test_only_pinned_wheels_are_packed() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert all(re.fullmatch(r"\S+==[\d.]+", pinned(constraints, package)) for package in PACKAGES)
    with pytest.raises(SystemExit, match="does not pin no-such-package"):
        pinned(constraints, "no-such-package")


def test_results_are_named_after_the_card() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"
