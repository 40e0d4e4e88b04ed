"""TensorRT for RTX builds without a GPU, so all of this is real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from masksam_deploy.base.errors import EngineError, OutputError
from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.runtimes.registry import BuildOptions, Precision, open_builder
from masksam_deploy.runtimes.tensorrt.network import contraction_types
from masksam_deploy.runtimes.tensorrt.rtx_builder import known_gpus
from masksam_deploy.runtimes.versions import import_rtx
from tests.runtimes.builders.graphs import model, onnx, write_graph

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")

SM89 = BuildOptions(gpus=("sm89",))
no_gpu = pytest.mark.skipif(bool(find_gpus().devices), reason="this machine has a GPU")


def quietly(what: str, done: int, total: int) -> None:
    del what, done, total


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "engines"
    folder.mkdir()
    return folder / "graph.rtx"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_an_engine_for_three_gpus_comes_from_a_typed_graph(tmp_path: Path, output: Path, precision: Precision) -> None:
    options = BuildOptions(gpus=("sm86", "sm89", "sm120"), batches=(1, 2, 4))
    built = open_builder("rtx").build(write_graph(tmp_path, precision), output, precision, options, quietly)
    assert output.stat().st_size == built.bytes > 10_000
    assert built.precision_in_graph == {precision: 3}
    assert built.facts == {"tensorrt_rtx": import_rtx().__version__, "gpus": "sm86,sm89,sm120"}
    assert 0 < built.seconds < 60


@no_gpu
def test_what_cannot_be_read_back_is_said_and_not_guessed(tmp_path: Path, output: Path) -> None:
    built = open_builder("rtx").build(write_graph(tmp_path, "fp16"), output, "fp16", SM89, quietly)
    assert built.precision_found is None
    assert str(built.not_read_back).startswith("an engine can be read back only on a GPU: no NVIDIA driver")


@pytest.mark.gpu
def test_an_engine_for_this_gpu_is_read_back(tmp_path: Path, output: Path) -> None:
    built = open_builder("rtx").build(write_graph(tmp_path, "fp16"), output, "fp16", BuildOptions(), quietly)
    assert built.precision_found is not None, built.not_read_back
    assert built.precision_found.get("fp16") or built.precision_found.get("fused")


def test_the_workspace_limit_reaches_the_runtime(tmp_path: Path, output: Path) -> None:
    with pytest.raises(EngineError, match=r"within workspace limit.*allow more with --workspace"):
        options = replace(SM89, workspace_bytes=1024)
        open_builder("rtx").build(write_graph(tmp_path, "fp16"), output, "fp16", options, quietly)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        ("fp32", "fp16", "found operators: 3 in fp32, expected some in fp16"),
        ("fp32", "int8", "found operators: 3 in fp32, expected some in int8"),
        ("fp16", "fp32", "found operators: 3 in fp16, expected some in fp32"),
        ("int8", "bf16", "found operators: 3 in int8, expected some in bf16"),
    ],
)
def test_a_graph_of_another_precision_than_asked_is_refused(
    tmp_path: Path, output: Path, stored: Precision, asked: Precision, found: str
) -> None:
    with pytest.raises(EngineError, match=found):
        open_builder("rtx").build(write_graph(tmp_path, stored), output, asked, SM89, quietly)
    assert list(output.parent.iterdir()) == []


def test_a_graph_with_some_int8_is_not_sold_as_float32(tmp_path: Path, output: Path) -> None:
    graph = model("int8")
    # The first product reads plain float32 instead.
    graph.graph.node[2].ClearField("input")
    next(node for node in graph.graph.node if node.name == "/blocks/0/MatMul").input[0] = "x"
    nodes = [node for node in graph.graph.node if node.name not in ("quantise0", "dequantise0", "weights0")]
    constant = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(model("fp32").graph.initializer[0]), "w0")
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.append(constant)
    path = tmp_path / "mixed.onnx"
    onnx.save(graph, str(path))
    with pytest.raises(EngineError, match="found operators: 1 in fp32, 2 in int8, expected only fp32"):
        open_builder("rtx").build(path, output, "fp32", SM89, quietly)
    built = open_builder("rtx").build(path, output, "int8", SM89, quietly)
    assert built.precision_in_graph == {"fp32": 1, "int8": 2}


def test_int8_weights_with_float_activations_do_not_count_as_int8() -> None:
    trt = import_rtx()
    graph = model("int8", layers=1)
    product = next(node for node in graph.graph.node if node.op_type == "MatMul")
    product.input[0] = "x"
    del graph.graph.node[0:2]
    network = trt.Builder(_log()).create_network(0)
    assert trt.OnnxParser(network, _log()).parse(graph.SerializeToString())
    assert contraction_types(network) == {"fp32": 1}


def test_a_node_that_the_parser_refuses_is_named(tmp_path: Path, output: Path) -> None:
    graph = model("fp32")
    product = next(node for node in graph.graph.node if node.name == "/blocks/1/MatMul")
    product.op_type = "Unique"
    del product.input[1]
    path = tmp_path / "unique.onnx"
    onnx.save(graph, str(path))
    with pytest.raises(EngineError, match=r"node '/blocks/1/MatMul' \(Unique\): UNSUPPORTED_NODE"):
        open_builder("rtx").build(path, output, "fp32", SM89, quietly)


def test_types_that_do_not_fit_together_are_refused_with_the_node(tmp_path: Path, output: Path) -> None:
    graph = model("fp16")
    index = next(i for i, weight in enumerate(graph.graph.initializer) if weight.name == "w1")
    graph.graph.initializer[index].CopyFrom(
        next(weight for weight in model("fp32").graph.initializer if weight.name == "w1")
    )
    path = tmp_path / "clash.onnx"
    onnx.save(graph, str(path))
    with pytest.raises(EngineError, match=r"node '/blocks/1/MatMul'.*type Half.*type Float"):
        open_builder("rtx").build(path, output, "fp16", SM89, quietly)


@pytest.mark.parametrize("content", [b"", b"no protobuf at all"])
def test_a_damaged_graph_is_refused(tmp_path: Path, output: Path, content: bytes) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"damaged\.onnx: (TensorRT for RTX|found operators: none at all)"):
        open_builder("rtx").build(path, output, "fp32", SM89, quietly)


def test_a_second_open_dimension_is_refused_with_its_input(tmp_path: Path, output: Path) -> None:
    graph = model("fp32")
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "N"
    path = tmp_path / "open.onnx"
    onnx.save(graph, str(path))
    with pytest.raises(EngineError, match=r"input 'x' with the sizes \(-1, -1, 64\)"):
        open_builder("rtx").build(path, output, "fp32", SM89, quietly)


def test_weights_beside_the_graph_are_found(tmp_path: Path, output: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(model("fp32"), str(path), save_as_external_data=True, location="large.onnx.data", size_threshold=0)
    assert path.with_name("large.onnx.data").stat().st_size > 10 * path.stat().st_size
    built = open_builder("rtx").build(path, output, "fp32", SM89, quietly)
    assert built.precision_in_graph == {"fp32": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions(gpus=("sm87",)), r"found GPU 'sm87'.*builds for sm75, sm80, sm86, sm89, .*target 'tensorrt'"),
        (BuildOptions(gpus=("current",)), "found GPU 'current'"),
        (BuildOptions(gpus=("none",)), "found GPU 'none'"),
        (BuildOptions(gpus=("sm89", "sm89")), "found a GPU twice"),
        (replace(SM89, batches=(1, 3, 2)), "--batches: found 1,3,2"),
        (replace(SM89, batches=(0, 1, 2)), "--batches: found 0,1,2"),
        (replace(SM89, workspace_bytes=0), "--workspace: found 0 bytes"),
        (replace(SM89, hardware_compatible=True), "--hardware-compatible cannot be used with target 'rtx'"),
        (replace(SM89, version_compatible=True), "--version-compatible cannot be used"),
        (replace(SM89, timing_cache=Path("x")), "--timing-cache cannot be used"),
        (replace(SM89, optimization_level=5), "--optimization-level cannot be used"),
        (replace(SM89, optimization_level=6), "expected 0 to 5"),
    ],
)
def test_options_that_cannot_be_met_are_refused_early(options: BuildOptions, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_builder("rtx").check(options)


@no_gpu
def test_without_a_gpu_the_gpus_must_be_named() -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*--gpu sm86,sm89; TensorRT for RTX .* builds for sm75"):
        open_builder("rtx").check(BuildOptions())
    with pytest.raises(EngineError, match="--strip-weights: found no GPU"):
        open_builder("rtx").check(replace(SM89, strip_weights=True))


def test_the_known_gpus_are_listed_in_their_order() -> None:
    found = known_gpus(import_rtx())
    assert found[:4] == ("sm75", "sm80", "sm86", "sm89")
    assert found.index("sm89") < found.index("sm120")


def test_an_output_that_cannot_be_written_is_refused_before_the_build(tmp_path: Path) -> None:
    graph = write_graph(tmp_path, "fp32")
    seen: list[str] = []
    with pytest.raises(OutputError, match="the folder does not exist"):
        open_builder("rtx").build(
            graph, tmp_path / "missing" / "graph.rtx", "fp32", SM89, lambda what, *_: seen.append(what)
        )
    assert seen == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, output: Path) -> None:
    graph = write_graph(tmp_path, "fp32")
    code = (
        "import resource, signal, sys; from pathlib import Path; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from masksam_deploy.runtimes.registry import *; "
        "open_builder('rtx').build(Path(sys.argv[1]), Path(sys.argv[2]), 'fp32', BuildOptions(gpus=('sm89',)), "
        "lambda *_: None)"
    )
    done = subprocess.run([sys.executable, "-c", code, graph, output], capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr
    assert "the file would exceed the size limit" in done.stderr
    assert list(output.parent.iterdir()) == []


def test_progress_names_what_is_done_and_for_how_long(tmp_path: Path, output: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    graph = write_graph(tmp_path, "fp16", layers=100)
    open_builder("rtx").build(graph, output, "fp16", SM89, lambda *state: seen.append(state))
    assert seen
    assert all(what.endswith(" s)") and 0 <= done <= max(done, total) for what, done, total in seen)


def test_an_error_in_the_callers_progress_stops_the_build(tmp_path: Path, output: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    graph = write_graph(tmp_path, "fp16", layers=100)
    with pytest.raises(KeyboardInterrupt):
        open_builder("rtx").build(graph, output, "fp16", SM89, stop)
    assert list(output.parent.iterdir()) == []


def test_a_stopped_build_stops_at_its_next_step(tmp_path: Path) -> None:
    """What the runtime does when the monitor says no: it gives no engine, and says that the user stopped it."""
    from masksam_deploy.runtimes.tensorrt.log import open_log
    from masksam_deploy.runtimes.tensorrt.serialize import new_monitor

    trt = import_rtx()
    builder = trt.Builder(_log())
    network = builder.create_network(0)
    assert trt.OnnxParser(network, _log()).parse_from_file(str(write_graph(tmp_path, "fp32")))
    config = builder.create_builder_config()
    config.add_optimization_profile(_one_window(builder))
    monitor = new_monitor(trt)
    config.progress_monitor = monitor
    monitor.stop()
    open_log(trt).clear()
    assert builder.build_serialized_network(network, config) is None
    assert "canceled by user" in open_log(trt).last_error()


def test_an_interrupt_ends_the_process_and_leaves_nothing_behind(tmp_path: Path, output: Path) -> None:
    graph = write_graph(tmp_path, "fp16", layers=100)
    code = (
        "import os, signal, sys; from pathlib import Path; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from masksam_deploy.runtimes.registry import *; "
        "open_builder('rtx').build(Path(sys.argv[1]), Path(sys.argv[2]), 'fp16', BuildOptions(gpus=('sm89',)), "
        "lambda *_: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, graph, output], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "KeyboardInterrupt" in done.stderr
    assert list(output.parent.iterdir()) == []


def _log() -> object:
    from masksam_deploy.runtimes.tensorrt.log import open_log

    return open_log(import_rtx())


def _one_window(builder: object) -> object:
    profile = builder.create_optimization_profile()  # type: ignore[attr-defined]
    profile.set_shape("x", (1, 10, 64), (1, 10, 64), (1, 10, 64))
    return profile
