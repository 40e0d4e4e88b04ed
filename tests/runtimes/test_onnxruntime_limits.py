"""Networks that take too long or too much: a signal, a time limit and a limit of memory end them, and nothing is said
but our own one line.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

import onnx
from onnx import ModelProto, helper, numpy_helper

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.memory import bounded_network, network_headroom
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.runtimes import open_chain
from masksam_deploy.runtimes.onnxruntime import OnnxRuntimeSession
from masksam_deploy.scan_path.segmenter import Segmenter
from tests.engines.small_bundle import PATCH, ball_scan, make_bundle, write_ball_scans
from tests.fuzz.bundles import replace_graph

MAIN = "from masksam_deploy.cli import main; main(sys.argv[1:])"


def before(bundle: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Let the encoder do `nodes` as well, whose last output `more` is a number that is added to its result."""
    model: ModelProto = onnx.load(str(bundle / "encoder.onnx"))
    result = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["own" if name == result else name for name in node.output]
    model.graph.node.extend([*nodes, helper.make_node("Add", ["own", "more"], [result])])
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    replace_graph(bundle, "encoder.onnx", model)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A bundle whose encoder multiplies matrices for many minutes, in steps of some milliseconds."""
    bundle = make_bundle(tmp_path / "slow.masksam").path
    # From the image, so that nothing can be computed or packed while loading.
    first = [
        helper.make_node("ReduceMax", ["image"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["square", "peak"], ["step_0"]),
    ]
    count = 1_000
    steps = [helper.make_node("MatMul", [f"step_{i}", "step_0"], [f"step_{i + 1}"]) for i in range(count)]
    last = helper.make_node("ReduceMax", [f"step_{count}"], ["more"], keepdims=0)
    before(bundle, [*first, *steps, last], {"square": np.full((1_200, 1_200), 1e-6, np.float32)})
    return bundle


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_ball_scans(tmp_path / "scans", range(1))
    return tmp_path / "scans" / "scan_0.nii.gz"


def started(*arguments: object, code: str = "", cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys\n{code}\n{MAIN}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


# Says on stdout that the network is about to run, and lets go of nothing.
TELLING = """
from masksam_deploy.runtimes import onnxruntime as backend
real = backend.OnnxRuntimeSession.METHOD
def told(*given, **named):
    print("started", flush=True)
    return real(*given, **named)
backend.OnnxRuntimeSession.METHOD = told
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_running_graph_at_once(slow: Path, scan: Path, tmp_path: Path, number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run where this signal is ignored, and so does the command")
    results = tmp_path / "results"
    results.mkdir()
    with started(
        "infer", scan, "-b", slow, "-o", "seg.nii.gz", code=TELLING.replace("METHOD", "run"), cwd=results
    ) as process:
        assert process.stdout and process.stdout.readline() == "started\n", process.communicate()
        time.sleep(0.5)
        sent = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    assert time.monotonic() - sent < 6  # under 1 s where the machine does nothing else
    assert list(results.iterdir()) == []


def test_a_signal_ends_loading_that_cannot_be_stopped(scan: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "balls.masksam").path
    code = """
import os
os.environ["PLANTED"] = "endless at load"
from masksam_deploy.runtimes.onnxruntime import OnnxRuntimeSession, process
from masksam_deploy.base.isolation import Workers
process._FORKED = Workers("tests.runtimes.planted_runtime")
real = OnnxRuntimeSession._load
def told(*given):
    print("started", flush=True)
    real(*given)
OnnxRuntimeSession._load = told
"""
    with started("infer", scan, "-b", bundle, "-o", tmp_path / "seg.nii.gz", code=code) as process:
        assert process.stdout and process.stdout.readline() == "started\n", process.communicate()
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")
    assert time.monotonic() - sent < 6
    assert not (tmp_path / "seg.nii.gz").exists()


def test_a_graph_that_takes_too_long_is_given_up(slow: Path, scan: Path, tmp_path: Path) -> None:
    output = tmp_path / "seg.nii.gz"
    with started("infer", scan, "-b", slow, "-o", output, "--run-timeout", 1) as process:
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (2, "")
    assert (
        errors.startswith("error: graph 'encoder' took more than 1 s to run in ONNX Runtime")
        and "\n" not in errors[:-1]
    )
    assert "--run-timeout" in errors
    assert not output.exists()


def test_the_time_limit_holds_in_other_threads_and_the_network_can_be_used_again(slow: Path) -> None:
    failures: list[BaseException] = []
    image = np.ones((1, 1, *PATCH), np.float32)
    with open_chain(Bundle.load(slow), threads=1) as chain:
        chain.limit_runs(0.2)

        def run() -> None:
            try:
                chain(image)
            except BackendError as error:
                failures.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [str(error)[:40] for error in failures] == ["graph 'encoder' took more than 0.2 s to "] * 2
        with pytest.raises(BackendError, match="took more than"):
            chain(image)


def test_a_segmenter_limits_the_time_of_its_runs(slow: Path) -> None:
    with (
        Segmenter(slow, threads=1, run_timeout=0.2) as segmenter,
        pytest.raises(BackendError, match=r"took more than 0\.2 s"),
    ):
        segmenter(ball_scan(0)[0])
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="run_timeout"):
            Segmenter(slow, run_timeout=seconds)


# Stands for a machine with little memory, so that this one is not filled.
LITTLE = (
    "from masksam_deploy.base import memory\n"
    "memory.available_memory = lambda: 300 * 2**20; memory._free_swap = lambda: 0"
)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize(("tensors", "size"), [(1, 2**38), (64, 2**24)])
def test_a_graph_that_takes_more_memory_than_there_is_fails_cleanly(
    scan: Path, tmp_path: Path, tensors: int, size: int
) -> None:
    bundle = make_bundle(tmp_path / "bomb.masksam").path
    # The values depend on the image, so that nothing is known while loading; all are needed at the end.
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["peak"], keepdims=0),
        helper.make_node("Add", ["column", "peak"], ["peaks"]),
        *(helper.make_node("MatMul", ["peaks", f"row_{i}"], [f"bomb_{i}"]) for i in range(tensors)),
        helper.make_node("Concat", [f"bomb_{i}" for i in range(tensors)], ["all"], axis=0),
        helper.make_node("ReduceMax", ["all"], ["more"], keepdims=0),
    ]
    side = isqrt(size)
    rows = {f"row_{i}": np.full((1, side), i, np.float32) for i in range(tensors)}
    before(bundle, nodes, {"column": np.zeros((side, 1), np.float32), **rows})
    output = tmp_path / "seg.nii.gz"
    with started("infer", scan, "-b", bundle, "-o", output, "--max-ram", "200M", code=LITTLE) as process:
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (2, ""), errors
    assert errors.startswith("error: graph 'encoder' found too little memory to run in ONNX Runtime"), errors
    assert errors.count("\n") == 1 and "\x1b" not in errors
    assert not output.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_an_honest_network_runs_within_the_limit_of_memory(scan: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "balls.masksam").path
    with started(
        "infer", scan, "-b", bundle, "-o", tmp_path / "seg.nii.gz", "--max-ram", "250M", code=LITTLE
    ) as process:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_nothing_but_our_line_is_said_of_graphs_that_fail(scan: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bad.masksam").path
    broken = [
        helper.make_node("Reshape", ["image", "shape"], ["odd"]),
        helper.make_node("ReduceMax", ["odd"], ["more"]),
    ]
    before(bundle, broken, {"shape": np.array([7, 11, 13])})
    with started("infer", scan, "-b", bundle, "-o", tmp_path / "seg.nii.gz") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: graph 'encoder' does not ") and errors.count("\n") == 1, errors
    before(bundle, [helper.make_node("Gelu", ["image"], ["more"], approximate="wrongly")], {})
    with started("infer", scan, "-b", bundle, "-o", tmp_path / "seg.nii.gz") as process:
        _, errors = process.communicate(timeout=60)
    assert errors.startswith("error: graph 'encoder' does not load in ONNX Runtime") and errors.count("\n") == 1, errors


def declared(**changes: Sequence[int | str]) -> Graph:
    shapes: dict[str, Sequence[int | str]] = {"image": ["B", 1, *PATCH], "features": ["B", 32, *PATCH], **changes}
    ports = {name: Port(name=name, dtype="float32", shape=tuple(shape)) for name, shape in shapes.items()}
    return Graph(name="encoder", file="encoder.onnx", inputs=(ports["image"],), outputs=(ports["features"],))


def test_ports_of_the_file_are_held_against_the_manifest(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "balls.masksam").path / "encoder.onnx"
    OnnxRuntimeSession(declared(), path, threads=1).close()
    with pytest.raises(BackendError, match=r"has as input .* its manifest says"):
        OnnxRuntimeSession(declared(image=["B", 2, *PATCH]), path, threads=1)
    with pytest.raises(BackendError, match=r"has as output .* its manifest says"):
        OnnxRuntimeSession(declared(features=["B", 32, 1, *PATCH]), path, threads=1)
    other = declared().model_copy(update={"inputs": (Port(name="image", dtype="float64", shape=("B", 1, *PATCH)),)})
    with pytest.raises(BackendError, match="float64"):
        OnnxRuntimeSession(other, path, threads=1)
    missing = declared().model_copy(update={"outputs": (Port(name="none", dtype="float32", shape=("B", 1)),)})
    with pytest.raises(BackendError, match="has as output 'none' none"):
        OnnxRuntimeSession(missing, path, threads=1)


def test_a_graph_with_a_loop_never_reaches_the_runtime(scan: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "loop.masksam").path
    before(bundle, [helper.make_node("Loop", ["image"], ["more"])], {})
    with started("infer", scan, "-b", bundle, "-o", tmp_path / "seg.nii.gz") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "encoder.onnx: found the operator Loop" in errors and errors.count("\n") == 1


def test_the_limit_of_memory_holds_within_its_block() -> None:
    assert network_headroom() is None
    with bounded_network(2**40):
        headroom = network_headroom()
        if sys.platform == "linux":
            assert headroom is not None
            assert 2**40 < headroom < 2**41
    assert network_headroom() is None
