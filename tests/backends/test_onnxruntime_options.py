"""What every session of ONNX Runtime has in common."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy.backends import onnxruntime as backend
from masksam_deploy.backends.onnxruntime import import_runtime, session_options
from masksam_deploy.engines.graph_types import save_model
from masksam_deploy.engines.quantisation import _calibrator
from tests.engines.small_bundle import model, node


@pytest.mark.parametrize(
    ("threads", "usable", "cores", "expected"), [(None, 8, 8, 0), (None, 2, 8, 2), (3, 2, 8, 3), (1, 8, 8, 1)]
)
def test_a_process_that_is_bound_to_some_cores_takes_no_more(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, usable: int, cores: int, expected: int
) -> None:
    monkeypatch.setattr(backend, "usable_cores", lambda: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert session_options(import_runtime(), threads).intra_op_num_threads == expected


def test_calibration_keeps_to_the_threads_that_were_asked_for(tmp_path: Path) -> None:
    graph = model(
        "linear", [node("MatMul", ["x", "weight"], "out")], {"x": ["B", 64]}, {"out": ["B", 64]}, {"weight": np.eye(64)}
    )
    save_model(graph, tmp_path / "model.onnx")
    calibrator = _calibrator(tmp_path / "model.onnx", {"x"}, "percentile", 1)
    assert calibrator.infer_session.get_session_options().intra_op_num_threads == 1
