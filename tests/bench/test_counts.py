"""Counted against hand-computed figures: shapes are written so that every factor differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="needs the 'engines' extra")

import numpy as np  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from masksam_deploy.base.errors import BenchError  # noqa: E402
from masksam_deploy.bench.counts import count_work  # noqa: E402
from masksam_deploy.bench.results import Work  # noqa: E402

Shapes = dict[str, list[int | str]]


def graph(
    folder: Path, nodes: list[Any], inputs: Shapes, outputs: Shapes, weights: dict[str, Any], functions: Any = ()
) -> Path:
    """A graph; a weight is an array, or the shape of one."""
    feeds, results = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    )
    arrays = [
        numpy_helper.from_array(value if isinstance(value, np.ndarray) else np.ones(value, np.float32), name)
        for name, value in weights.items()
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    made = helper.make_graph(nodes, "counted", feeds, results, arrays)
    model = helper.make_model(made, opset_imports=opsets, ir_version=10, functions=list(functions))
    path = folder / "graph.onnx"
    onnx.save(model, str(path))
    return path


CASES = [
    pytest.param(
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        ["B", 2, 3, 5],
        (5, 7),
        2 * (2 * 3) * 5 * 7,
        2 * 3 * 5 + 5 * 7 + 2 * 3 * 7,
        id="a batched matrix product",
    ),
    pytest.param(
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1),
        [5, 3],
        (7, 5),
        2 * 3 * 5 * 7,
        5 * 3 + 7 * 5 + 3 * 7,
        id="a transposed Gemm",
    ),
    pytest.param(
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], pads=[1, 0, 1, 0], group=2),
        ["B", 6, 9, 8],
        (4, 3, 3, 2),
        2 * (4 * 5 * 7) * (3 * 3 * 2),
        6 * 9 * 8 + 4 * 3 * 3 * 2 + 4 * 5 * 7,
        id="a grouped, strided convolution",
    ),
    pytest.param(
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2),
        ["B", 6, 5, 4],
        (6, 7, 2, 2),
        2 * (6 * 5 * 4) * (7 * 2 * 2),
        6 * 5 * 4 + 6 * 7 * 2 * 2 + 14 * 10 * 8,
        id="a grouped transposed convolution",
    ),
]


@pytest.mark.parametrize(("node", "shape", "weight", "flops", "elements"), CASES)
def test_one_node(
    tmp_path: Path, node: Any, shape: list[int | str], weight: tuple[int, ...], flops: int, elements: int
) -> None:
    path = graph(tmp_path, [node], {"x": shape}, {"y": ["B"] * len(shape)}, {"w": weight})
    assert count_work(path) == Work(flops=flops, bytes=4 * elements)


def test_views_are_free_and_elementwise_work_moves_bytes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Mul", ["product", "product"], ["square"]),
        helper.make_node("Relu", ["square"], ["y"]),
    ]
    weights = {"rows": np.array([-1, 5]), "w": (5, 7)}
    work = count_work(graph(tmp_path, nodes, {"x": ["B", 2, 3, 5]}, {"y": [None, 7]}, weights))  # type: ignore[list-item]
    product, output = 30 + 35 + 42, 42
    assert work == Work(flops=2 * 6 * 5 * 7, bytes=4 * (product + 2 * output + 2 * output))
    assert work.intensity == work.flops / work.bytes


def test_slices_read_only_what_they_give(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Slice", ["x", "first", "last", "axis"], ["part"]),
        helper.make_node("MatMul", ["part", "w"], ["y"]),
    ]
    weights = {"first": np.array([0]), "last": np.array([2]), "axis": np.array([1]), "w": (5, 7)}
    work = count_work(graph(tmp_path, nodes, {"x": ["B", 100, 5]}, {"y": ["B", 2, 7]}, weights))
    assert work.bytes == 4 * (2 * 10 + (10 + 35 + 14))


def test_a_node_with_a_body_is_counted_by_its_body(tmp_path: Path) -> None:
    body = helper.make_function(
        "own",
        "Twice",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("MatMul", ["m", "b"], ["c"])],
        [helper.make_opsetid("", 20)],
    )
    nodes = [helper.make_node("Twice", ["x", "w"], ["y"], domain="own")]
    path = graph(tmp_path, nodes, {"x": ["B", 3, 5]}, {"y": ["B", 3, 5]}, {"w": (5, 5)}, [body])
    assert count_work(path).flops == 2 * (2 * 3 * 5 * 5)


def test_large_weights_need_not_be_read(tmp_path: Path) -> None:
    path = graph(
        tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["B", 64]}, {"y": ["B", 128]}, {"w": (64, 128)}
    )
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.data", size_threshold=0)
    (tmp_path / "weights.data").unlink()
    assert count_work(path).flops == 2 * 64 * 128


def test_a_shape_that_does_not_follow_from_the_inputs_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["found"]), helper.make_node("Cast", ["found"], ["f"], to=1)]
    nodes.append(helper.make_node("MatMul", ["f", "x"], ["y"]))
    with pytest.raises(BenchError, match="without a shape"):
        count_work(graph(tmp_path, nodes, {"x": ["B", 5]}, {"y": ["B", 5]}, {}))


def test_a_graph_with_nothing_to_count_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(BenchError, match="no matrix product or convolution"):
        count_work(graph(tmp_path, nodes, {"x": ["B", 5]}, {"y": ["B", 5]}, {}))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BenchError, match="found no ONNX graph"):
        count_work(tmp_path / "graph.onnx")
