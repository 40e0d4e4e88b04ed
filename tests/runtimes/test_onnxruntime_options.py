"""What every session of ONNX Runtime has in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy.engines.graph_types import save_model
from masksam_deploy.engines.quantisation import _calibrator
from masksam_deploy.runtimes.onnxruntime import (
    RuntimeProcess,
    SessionSettings,
    import_runtime,
    session_options,
    settings,
    thread_count,
)
from tests.engines.small_bundle import model, node


@pytest.mark.parametrize(
    ("threads", "usable", "cores", "expected"), [(None, 8, 8, 0), (None, 2, 8, 2), (3, 2, 8, 3), (1, 8, 8, 1)]
)
def test_a_process_that_is_bound_to_some_cores_takes_no_more(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, usable: int, cores: int, expected: int
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    asked = SessionSettings(thread_count(threads))
    assert session_options(import_runtime(), asked).intra_op_num_threads == expected


def test_calibration_keeps_to_the_threads_that_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SessionSettings] = []
    load = RuntimeProcess.load

    def loaded(process: RuntimeProcess, path: Path, settings: SessionSettings, seconds: float | None = None) -> Any:
        asked.append(settings)
        return load(process, path, settings, seconds)

    monkeypatch.setattr(RuntimeProcess, "load", loaded)
    graph = model(
        "linear", [node("MatMul", ["x", "weight"], "out")], {"x": ["B", 64]}, {"out": ["B", 64]}, {"weight": np.eye(64)}
    )
    save_model(graph, tmp_path / "model.onnx")
    _calibrator(tmp_path / "model.onnx", {"x"}, "percentile", 1)
    assert [settings.threads for settings in asked] == [1]
