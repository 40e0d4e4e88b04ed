"""Three small scans, and what a run made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

from tests.cli.infer.calls import done
from tests.engines.small_bundle import make_bundle, write_ball_scans


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    (folder.parent / "readme.txt").write_text("a file, no folder")
    return make_bundle(folder / "balls.masksam", cases=1).path


@pytest.fixture(scope="module")
def ran(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans and what a run made of them."""
    folder = tmp_path_factory.mktemp("ran")
    done(write_ball_scans(folder / "scans", range(3)), "-b", bundle, "-o", folder / "out")
    return folder


@pytest.fixture
def finished(ran: Path, scans: Path, out: Path) -> Path:
    """The run's results, to be spoiled."""
    return Path(shutil.copytree(ran / "out", out))


@pytest.fixture
def scans(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran / "scans", tmp_path / "scans"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
