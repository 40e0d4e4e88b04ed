"""Engines for a GPU on a machine without one: what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from masksam_deploy.base.errors import BackendError, EngineError
from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.choose import open_engine, open_network
from masksam_deploy.engines.device_gate import runs_here
from masksam_deploy.engines.store import Engine, EngineRecord, machine_problem, store_engine
from masksam_deploy.runtimes.registry import BuildOptions, open_builder
from tests.example_bundle import make_bundle

no_gpu = pytest.mark.skipif(bool(find_gpus().devices), reason="this machine has a GPU")
MACHINE = {"tensorrt_rtx": "1.7.1", "gpus": "sm89,sm120"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "heart.masksam")


def stored(bundle: Bundle, options: Mapping[str, Any] | None = None) -> Engine:
    """An engine of the example bundle, of bytes that no runtime reads before it has found a GPU."""
    names = [graph.name for graph in bundle.manifest.graphs]
    staging = bundle.path / "engines" / ".staging"
    staging.mkdir(parents=True)
    for name in names:
        (staging / f"{name}.rtx").write_bytes(b"an engine")
    record = EngineRecord(
        bundle_sha256=bundle.sha256,
        target="rtx",
        precisions=dict.fromkeys(names, "fp16"),
        asked=dict.fromkeys(names, "fp16"),
        machine=MACHINE,
        options=dict(options or {}),
        graphs={name: f"{name}.rtx" for name in names},
        gate={"judged": False},
        provenance={"command": "masksam-deploy build-engine heart.masksam --fp16 --target rtx"},
        files={},
    )
    return store_engine(staging, bundle, record)


@no_gpu
def test_an_engine_for_a_gpu_does_not_open_without_a_driver(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    pytest.importorskip("cuda.core")
    with pytest.raises(BackendError, match=r"opening the GPU: .*driver.*check them with 'masksam-deploy doctor'"):
        open_engine(bundle, stored(bundle))


def test_an_engine_without_weights_is_never_chosen(bundle: Bundle) -> None:
    here = MACHINE | {"gpus": "sm89"}
    assert stored(bundle).problem(bundle, here) is None
    problem = stored(bundle, {"strip_weights": True}).problem(bundle, here)
    assert problem is not None
    assert "built without weights" in problem.reason


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({"gpus": "sm120"}, None),
        ({"gpus": "sm86"}, "it was built for gpus 'sm89,sm120', here is 'sm86'"),
        ({"gpus": ""}, "here is none"),
        ({"tensorrt_rtx": "1.8.0"}, "it was built for tensorrt_rtx '1.7.1', here is '1.8.0'"),
    ],
)
def test_what_was_built_is_compared_with_the_machine(here: dict[str, str], reason: str | None) -> None:
    problem = machine_problem(MACHINE, {"tensorrt_rtx": "1.7.1", "gpus": "sm89"} | here)
    assert (problem is None) if reason is None else (problem is not None and reason in problem.reason)


def test_a_limit_for_gpu_memory_is_refused_where_nothing_keeps_to_it(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"--max-vram: found no engine of TensorRT that is valid here"):
        open_network(bundle, max_vram=2**30)


def test_the_gate_judges_in_onnx_runtime_alone_what_runs_there() -> None:
    assert not runs_here(open_builder("onnxruntime"), BuildOptions())


@no_gpu
def test_the_gate_does_not_judge_engines_for_other_machines() -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    assert not runs_here(open_builder("rtx"), BuildOptions(gpus=("sm89",)))
    assert not runs_here(open_builder("rtx"), BuildOptions(gpus=("sm89",), strip_weights=True))
