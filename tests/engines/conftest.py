"""A small network and scans that its engines are judged on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the 'engines' extra")

from masksam_deploy.bundle.directory import Bundle
from tests.engines.small_bundle import make_bundle, write_ball_scans


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For tests that do not change it."""
    return make_bundle(tmp_path_factory.mktemp("engines") / "balls.masksam", cases=2)


@pytest.fixture
def own_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    """For tests that build engines in it."""
    return Bundle.load(shutil.copytree(bundle.path, tmp_path / "balls.masksam"))


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scans that no test judges on."""
    return write_ball_scans(tmp_path_factory.mktemp("calibration"), range(10, 13))


@pytest.fixture(scope="session")
def outlier_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Bundle]:
    """The same network with one channel out of proportion; see `make_bundle`."""

    def made(outlier: float) -> Bundle:
        return make_bundle(tmp_path_factory.mktemp("outlier") / "balls.masksam", outlier=outlier, cases=2)

    return made
