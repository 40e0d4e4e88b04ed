from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from masksam_deploy.base.nvidia import GpuReading
from masksam_deploy.bench.machine import (
    busy_warning,
    checkout_commit,
    gpu_state,
    machine_facts,
    processor_name,
    recent_load,
)
from masksam_deploy.bench.peaks import peak_bandwidth, peak_flops

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@needs_git
def test_the_commit_is_that_of_the_checkout_which_tracks_the_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert checkout_commit(package) is None
    git(tmp_path, "init", "-q")
    assert checkout_commit(package) is None  # in a checkout that does not know it, like an environment in a project
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert checkout_commit(package) == git(tmp_path, "rev-parse", "--short=12", "HEAD")
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "new.json").write_text("{}")
    assert "with changes" not in str(checkout_commit(package))
    (tmp_path / "beside.py").write_text("")
    assert str(checkout_commit(package)).endswith(" with changes")
    (tmp_path / "beside.py").unlink()
    (package / "__init__.py").write_text("changed = True")
    assert str(checkout_commit(package)).endswith(" with changes")


def test_the_machine_is_described() -> None:
    facts = machine_facts()
    assert {"processor", "cores", "memory", "system"} <= set(facts)
    assert processor_name()
    assert all(facts.values())


def test_a_busy_machine_is_warned_about() -> None:
    assert busy_warning(1.0, 2) is None
    assert "found a load of 4.9 on 2 cores" in str(busy_warning(4.9, 2))
    assert recent_load() >= 0


def test_gpu_readings_are_summed_up_and_what_is_not_told_is_left_out() -> None:
    readings = [GpuReading(2**30 * n, 1000 + n, None, 50.0 + n, None) for n in (3, 1, 2)]
    state = gpu_state(readings)
    assert state is not None
    assert state.readings == {
        "SM clock, MHz": (1001, 1002, 1003),
        "power, W": (51, 52, 53),
        "memory in use, GiB": (1, 2, 3),
    }
    assert gpu_state([]) is None


def test_peaks_are_measured_in_plausible_units() -> None:
    """A computer of the last twenty years: more than 0.1 GFLOP/s and 0.1 GB/s, less than a thousand times any."""
    assert 1e8 < peak_flops(threads=1, side=256) < 1e18
    assert 1e8 < peak_bandwidth(threads=1, elements=2**20) < 1e16
