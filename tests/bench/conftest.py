"""A small network that really segments."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="needs the 'engines' extra")
pytest.importorskip("onnxruntime", reason="needs the 'cpu' extra")

from masksam_deploy.bundle.directory import Bundle
from tests.engines.small_bundle import make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With a validation scan; tests do not change it."""
    return make_bundle(tmp_path_factory.mktemp("bench") / "balls.masksam", cases=1)


@pytest.fixture(scope="session")
def bare_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Without one."""
    return make_bundle(tmp_path_factory.mktemp("bench") / "bare.masksam")
