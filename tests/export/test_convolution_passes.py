"""3D convolutions with fewer multiplications: the same function, for every size, and in the graphs of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from benchmarks.adapter_formulations import session
from benchmarks.parts import relative_error
from masksam_export.families.masksam.graphs import graph_parts
from masksam_export.onnx_export import export_part
from masksam_export.passes.convolutions import Convolutions
from masksam_export.passes.frame_convolutions import best_tile, save_frame_products, tile_matrices
from masksam_export.passes.upsampled_convolutions import convolve_before_upsampling
from tests.export.golden import Golden

Floats = NDArray[np.float32]


def values(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def graph_of(
    nodes: list[onnx.NodeProto], inputs: Mapping[str, tuple[int, ...]], weights: Mapping[str, Floats]
) -> onnx.ModelProto:
    """A graph with inferred shapes, whose batch is dynamic."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape]) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def run(model: onnx.ModelProto, feeds: dict[str, Floats]) -> Floats:
    onnx.checker.check_model(model, full_check=True)
    out: Floats = session(model, threads=1).run(None, feeds)[0]
    return out


def rewritten(model: onnx.ModelProto, *, frames: bool) -> tuple[onnx.ModelProto, int]:
    """With one of the passes applied, and how often it was."""
    copy = onnx_ir.from_proto(model)
    count = save_frame_products(copy) if frames else convolve_before_upsampling(copy)
    RemoveUnusedNodesPass()(copy)
    return onnx_ir.to_proto(copy), count


def convolution(
    size: tuple[int, int, int], kernel: tuple[int, int, int], *, bias: bool = True, **attributes: Any
) -> onnx.ModelProto:
    """One `Conv` of 24 channels to 24, by default padded so that the size stays."""
    rng = np.random.default_rng(1)
    weights = {"w": values(rng, 24, 24, *kernel)} | ({"b": values(rng, 24)} if bias else {})
    settled = {"kernel_shape": kernel, "pads": [(side - 1) // 2 for side in kernel] * 2, **attributes}
    node = helper.make_node("Conv", ["x", *weights], ["y"], name="conv", **settled)
    return graph_of([node], {"x": (24, *size)}, weights)


@pytest.mark.parametrize("outputs", [2, 3, 4])
def test_a_tile_gives_the_correlation_with_three_taps(outputs: int) -> None:
    rng = np.random.default_rng(outputs)
    matrices = tile_matrices(outputs)
    frames, taps = rng.standard_normal(outputs + 2), rng.standard_normal(3)
    found = matrices.after @ ((matrices.kernels @ taps) * (matrices.before @ frames))
    np.testing.assert_allclose(found, np.correlate(frames, taps, "valid"), rtol=0, atol=1e-13)
    assert np.array_equal(matrices.before, np.rint(matrices.before))


def test_a_tile_is_chosen_by_its_products() -> None:
    assert best_tile(1) is None
    chosen = {frames: best_tile(frames) for frames in (2, 4, 9, 26)}
    assert chosen == {2: 2, 4: 4, 9: 3, 26: 4}
    for frames in range(2, 40):
        tile = best_tile(frames)
        assert tile is not None and -(-frames // tile) * (tile + 2) < 3 * frames


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(2, 11),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    side=st.sampled_from([1, 2, 3]),
    bias=st.booleans(),
)
def test_saved_products_along_the_frames_change_nothing(
    batch: int, frames: int, height: int, width: int, side: int, bias: bool
) -> None:
    model = convolution((frames, height, width), (3, side, side), bias=bias, pads=[1, side // 2, side // 2] * 2)
    new, count = rewritten(model, frames=True)
    assert count == (side > 1)  # with less to multiply, memory decides
    feeds = {"x": values(np.random.default_rng(2), batch, 24, frames, height, width)}
    # Up to 648 products of size one in float32, combined with factors up to five.
    np.testing.assert_allclose(run(new, feeds), run(model, feeds), rtol=0, atol=3e-4)


@pytest.mark.parametrize(
    "model",
    [
        convolution((6, 8, 8), (1, 3, 3)),
        convolution((6, 8, 8), (3, 3, 3), strides=[2, 1, 1]),
        convolution((6, 8, 8), (3, 3, 3), dilations=[2, 1, 1], pads=[2, 1, 1] * 2),
        convolution((6, 8, 8), (3, 3, 3), pads=[0, 1, 1] * 2),
        convolution((6, 8, 8), (3, 3, 3), pads=[2, 1, 1, 0, 1, 1]),
        convolution((1, 8, 8), (3, 3, 3)),
    ],
    ids=["one tap", "strided", "dilated", "not padded", "shifted", "one frame"],
)
def test_convolutions_of_other_kinds_are_left_alone(model: onnx.ModelProto) -> None:
    new, count = rewritten(model, frames=True)
    assert count == 0
    assert [node.op_type for node in new.graph.node] == ["Conv"]


def doubled_map(
    *, small: int, between: int, beside: int, outputs: int, size: tuple[int, int, int], depth: int, bias: bool
) -> onnx.ModelProto:
    """A transposed convolution, a concatenation with another map if there is one `beside`, a convolution."""
    rng = np.random.default_rng(3)
    frames, height, width = size
    weights = {
        "up_w": values(rng, small, between, 1, 2, 2),
        "w": values(rng, outputs, between + beside, depth, 3, 3),
    }
    if bias:
        weights |= {"up_b": values(rng, between), "b": values(rng, outputs)}
    nodes = [
        helper.make_node(
            "ConvTranspose",
            ["x", "up_w", *(["up_b"] if bias else [])],
            ["up"],
            name="up",
            kernel_shape=[1, 2, 2],
            strides=[1, 2, 2],
        )
    ]
    inputs: dict[str, tuple[int, ...]] = {"x": (small, *size)}
    source = "up"
    if beside:
        nodes.append(helper.make_node("Concat", ["up", "rest"], ["both"], name="both", axis=1))
        inputs["rest"] = (beside, frames, 2 * height, 2 * width)
        source = "both"
    nodes.append(
        helper.make_node(
            "Conv",
            [source, "w", *(["b"] if bias else [])],
            ["y"],
            name="conv",
            kernel_shape=[depth, 3, 3],
            pads=[depth // 2, 1, 1] * 2,
        )
    )
    return graph_of(nodes, inputs, weights)


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    beside=st.sampled_from([0, 3]),
    depth=st.sampled_from([1, 3]),
    bias=st.booleans(),
)
def test_convolving_before_doubling_changes_nothing(
    batch: int, size: tuple[int, int, int], beside: int, depth: int, bias: bool
) -> None:
    model = doubled_map(small=5, between=7, beside=beside, outputs=6, size=size, depth=depth, bias=bias)
    new, count = rewritten(model, frames=False)
    assert count == 1
    assert not any(node.op_type == "ConvTranspose" for node in new.graph.node)
    rng = np.random.default_rng(4)
    feeds = {
        value.name: values(rng, batch, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]))
        for value in model.graph.input
    }
    # Sums of up to 300 products of sums of five.
    np.testing.assert_allclose(run(new, feeds), run(model, feeds), rtol=0, atol=1e-4)


def test_a_wide_map_is_doubled_first_as_that_is_less_work() -> None:
    model = doubled_map(small=40, between=5, beside=0, outputs=6, size=(2, 3, 3), depth=3, bias=True)
    new, count = rewritten(model, frames=False)
    assert count == 0
    assert [node.op_type for node in new.graph.node] == ["ConvTranspose", "Conv"]


def test_a_doubled_map_that_others_read_is_kept() -> None:
    model = doubled_map(small=5, between=7, beside=0, outputs=6, size=(2, 3, 3), depth=3, bias=True)
    model.graph.output.append(helper.make_tensor_value_info("up", TensorProto.FLOAT, ["B", 7, 2, 6, 6]))
    _, count = rewritten(model, frames=False)
    assert count == 0


def test_a_network_has_its_convolutions_as_asked_for(tmp_path: Path) -> None:
    found, made = {}, {}
    with graph_parts(Golden.read("tiny_acdc").model()) as (_, generator, _):
        outputs = [port.name for port in generator.outputs]
        for convolutions in get_args(Convolutions):
            export_part(generator, tmp_path, convolutions=convolutions)
            model = onnx.load(tmp_path / "prompt_generator.onnx")
            made[convolutions] = model
            rng = np.random.default_rng(5)
            feeds = {port.name: values(rng, 2, *(int(size) for size in port.shape[1:])) for port in generator.inputs}
            found[convolutions] = dict(zip(outputs, session(model, 1).run(None, feeds), strict=True))
    for pass_of_it in (products_along_frames, kernels_of_doubled_maps):
        assert (pass_of_it(made["saving"]) > 0, pass_of_it(made["direct"])) == (True, 0)
    saving, direct = found["saving"], found["direct"]
    # Mask prompts: zeros and ones, whose threshold rounding may move.
    assert np.mean(saving[outputs[0]] != direct[outputs[0]]) < 1e-4
    for name in outputs[1:]:
        assert relative_error(saving[name], direct[name]) < 1e-4, name


def products_along_frames(model: onnx.ModelProto) -> int:
    """Convolutions of tiles of frames: one group for each product."""
    return sum(a.i > 1 for node in model.graph.node for a in node.attribute if a.name == "group")


def kernels_of_doubled_maps(model: onnx.ModelProto) -> int:
    """Convolutions of a map that is not doubled yet: 3 x 3 became 2 x 2, for each parity of row and column."""
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    return sum(w.name in kernels and list(w.dims[-2:]) == [2, 2] for w in model.graph.initializer)
