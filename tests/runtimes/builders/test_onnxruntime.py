from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from masksam_deploy.base.errors import BackendError, EngineError, OutputError
from masksam_deploy.runtimes.registry import BuildOptions, Precision, open_builder
from tests.runtimes.builders.graphs import model, onnx, write_graph

runtime = pytest.importorskip("onnxruntime", reason="needs the 'cpu' extra")


def quietly(what: str, done: int, total: int) -> None:
    del what, done, total


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_typed_graph_is_the_engine(tmp_path: Path, precision: Precision) -> None:
    graph = write_graph(tmp_path, precision)
    output = tmp_path / "out.onnx"
    built = open_builder("onnxruntime").build(graph, output, precision, BuildOptions(), quietly)
    assert output.read_bytes() == graph.read_bytes()
    assert built.precision_in_graph[precision] > 0
    assert built.facts["device"] == "cpu"
    assert built.facts["onnxruntime"] == runtime.__version__


def test_integer_arithmetic_is_read_back_from_the_runtimes_profile(tmp_path: Path) -> None:
    built = open_builder("onnxruntime").build(
        write_graph(tmp_path, "int8"), tmp_path / "out.onnx", "int8", BuildOptions(), quietly
    )
    assert built.precision_found is not None
    assert built.precision_found["int8"] > 0


def test_half_precision_that_a_cpu_computes_in_float32_is_said(tmp_path: Path) -> None:
    built = open_builder("onnxruntime").build(
        write_graph(tmp_path, "fp16"), tmp_path / "out.onnx", "fp16", BuildOptions(), quietly
    )
    assert built.precision_found == {"fp32": 3}
    assert built.notes == ("ONNX Runtime computes fp16 graphs in fp32 on this processor: right, but no faster",)


def test_an_int8_graph_in_which_nothing_is_fused_is_refused(tmp_path: Path) -> None:
    graph = model("int8", layers=1)
    # Another operator between the weights' DequantizeLinear and the product keeps them apart.
    product = next(node for node in graph.graph.node if node.op_type == "MatMul")
    position = list(graph.graph.node).index(product)
    between = onnx.helper.make_node("Softplus", [product.input[1]], ["apart"], name="apart")
    product.input[1] = "apart"
    graph.graph.node.insert(position, between)
    path = tmp_path / "unfused.onnx"
    onnx.save(graph, str(path))
    with pytest.raises(EngineError, match="found layers: 1 in fp32, expected some in int8"):
        open_builder("onnxruntime").build(path, tmp_path / "out.onnx", "int8", BuildOptions(), quietly)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("fp32", "fp16"), ("fp32", "int8"), ("fp16", "fp32"), ("int8", "fp32"), ("int8", "fp16"), ("fp16", "int8")],
)
def test_a_graph_of_another_precision_than_asked_is_refused(
    tmp_path: Path, stored: Precision, asked: Precision
) -> None:
    with pytest.raises(EngineError, match="found operators: "):
        open_builder("onnxruntime").build(
            write_graph(tmp_path, stored), tmp_path / "out.onnx", asked, BuildOptions(), quietly
        )


def test_a_graph_that_the_runtime_cannot_run_is_refused_with_its_node(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"does not run it on cpu: .*'/blocks/0/MatMul'"):
        open_builder("onnxruntime").build(
            write_graph(tmp_path, "bf16"), tmp_path / "out.onnx", "bf16", BuildOptions(), quietly
        )


def test_large_graphs_take_their_weights_along(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(model("fp32"), str(path), save_as_external_data=True, location="graph.onnx.data", size_threshold=0)
    folder = tmp_path / "engines"
    folder.mkdir()
    builder = open_builder("onnxruntime")
    builder.build(path, folder / "renamed.onnx", "fp32", BuildOptions(), quietly)
    path.with_name("graph.onnx.data").unlink()
    built = builder.build(folder / "renamed.onnx", folder / "renamed.onnx", "fp32", BuildOptions(), quietly)
    assert built.precision_found == {"fp32": 3}


def test_a_graph_can_stay_where_it_is(tmp_path: Path) -> None:
    graph = write_graph(tmp_path, "fp32")
    before = graph.stat().st_mtime_ns
    open_builder("onnxruntime").build(graph, graph, "fp32", BuildOptions(), quietly)
    assert graph.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"workspace_bytes": 1 << 30}, {"gpus": ("sm89",)}, {"timing_cache": Path("x")}])
def test_options_of_engines_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(EngineError, match="cannot be used with target 'onnxruntime'"):
        open_builder("onnxruntime").check(replace(BuildOptions(), **change))  # type: ignore[arg-type]


@pytest.mark.skipif("CUDAExecutionProvider" in runtime.get_available_providers(), reason="this one has CUDA")
def test_a_device_that_the_runtime_does_not_have_is_refused() -> None:
    with pytest.raises(BackendError, match=r"device 'cuda' was asked for.*pip install 'masksam-deploy\[cuda\]'"):
        open_builder("onnxruntime", device="cuda").check(BuildOptions())


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the folder does not exist"):
        open_builder("onnxruntime").build(
            write_graph(tmp_path, "fp32"), tmp_path / "no" / "out.onnx", "fp32", BuildOptions(), quietly
        )


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EngineError, match="'openvino' is unknown; expected onnxruntime, tensorrt, rtx"):
        open_builder("openvino")  # type: ignore[arg-type]
