"""Graphs in half precision: what is lowered, what stays, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.graph_types import GraphIndex, load_model, name_nodes
from masksam_deploy.engines.precision import Half, lower_precision, simulate_precision
from masksam_deploy.engines.protection import protected_by_range, protected_by_structure
from masksam_deploy.engines.ranges import measure_ranges
from masksam_deploy.runtimes.onnxruntime import import_runtime
from tests.engines.small_bundle import PATCH, model, node


def run(graph: onnx.ModelProto, feeds: dict[str, Any], *, exact: bool = False) -> dict[str, Any]:
    """In ONNX Runtime; `exact` as `OnnxRuntimeSession` runs int8."""
    options = import_runtime().SessionOptions()
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = import_runtime().InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def types(graph: onnx.ModelProto) -> dict[str, int]:
    return GraphIndex(graph).types


def image(seed: int = 0) -> dict[str, Any]:
    return {"image": np.random.default_rng(seed).normal(size=(1, 1, *PATCH)).astype(np.float32)}


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_arithmetic_is_lowered_and_ports_stay_in_float32(bundle: Bundle, half: Half) -> None:
    float32 = load_model(bundle.graph_path("encoder"))
    lowered = lower_precision(float32, half, protected_by_structure(GraphIndex(float32)))
    onnx.checker.check_model(lowered, full_check=True)
    element = TensorProto.FLOAT16 if half == "fp16" else TensorProto.BFLOAT16
    found = types(lowered)
    assert {found[name] for name in ("lifted", "mixed", "active", "narrowed")} == {element}
    assert found["image"] == found["features"] == TensorProto.FLOAT
    assert [value.name for value in lowered.graph.output] == ["features"]
    assert {tensor.data_type for tensor in lowered.graph.initializer} == {element}


@pytest.mark.parametrize("half", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["encoder", "generator", "decoder"])
def test_a_typed_graph_and_its_simulation_hold_the_same_tensors_in_half_precision(
    bundle: Bundle, name: str, half: Half
) -> None:
    float32 = load_model(bundle.graph_path(name))
    protected = protected_by_structure(GraphIndex(float32))
    typed, simulated = (made(float32, half, protected) for made in (lower_precision, simulate_precision))
    onnx.checker.check_model(simulated, full_check=True)
    element = TensorProto.FLOAT16 if half == "fp16" else TensorProto.BFLOAT16
    original = set(types(float32)) - {tensor.name for tensor in float32.graph.initializer}
    found = types(typed)
    stored = {tensor for tensor in original if element in (found.get(tensor), found.get(f"{tensor}__stored"))}
    assert stored
    assert stored == {tensor for tensor in original if f"{tensor}__narrow" in types(simulated)}


def test_norms_softmax_and_reductions_stay_in_float32(bundle: Bundle) -> None:
    float32 = load_model(bundle.graph_path("decoder"))
    lowered = lower_precision(float32, "fp16", protected_by_structure(GraphIndex(float32)))
    found = types(lowered)
    assert {found[name] for name in ("normed", "flat", "shares")} == {TensorProto.FLOAT}
    assert found["projected"] == found["evidence"] == TensorProto.FLOAT16


def test_everything_around_a_threshold_stays_in_float32(bundle: Bundle) -> None:
    float32 = load_model(bundle.graph_path("generator"))
    index = GraphIndex(float32)
    reasons = protected_by_structure(index)
    threshold = {"make_logits", "make_shifted", "make_probabilities", "make_above", "make_mask"}
    assert threshold <= set(reasons)
    assert {reasons[name] for name in threshold} == {"box and threshold path"}
    assert "make_widened" not in reasons  # the weights before those that the threshold sees


def test_position_encodings_stay_in_float32_from_the_coordinates_on() -> None:
    graph = model(
        "positions",
        [
            node("Sub", ["boxes", "half"], "centred"),
            node("MatMul", ["centred", "gaussian"], "phases"),
            node("Sin", ["phases"], "sines"),
            node("MatMul", ["sines", "weights"], "out"),
        ],
        {"boxes": ["B", 4, 2]},
        {"out": ["B", 4, 8]},
        {"half": np.array(0.5), "gaussian": np.ones((2, 8)), "weights": np.ones((8, 8))},
    )
    reasons = protected_by_structure(GraphIndex(graph))
    assert set(reasons) == {"make_centred", "make_phases", "make_sines"}
    assert set(reasons.values()) == {"position encoding"}


def test_a_tensor_is_cast_once_however_many_nodes_read_it() -> None:
    graph = model(
        "shared",
        [
            node("Softmax", ["x"], "shares"),
            *(node("Mul", ["shares", "scale"], f"copy_{number}") for number in range(3)),
            node("Sum", ["copy_0", "copy_1", "copy_2"], "out"),
        ],
        {"x": ["B", 8]},
        {"out": ["B", 8]},
        {"scale": np.array(2.0)},
    )
    lowered = lower_precision(graph, "fp16", {"make_shares"})
    casts = Counter(node.input[0] for node in lowered.graph.node if node.op_type == "Cast")
    assert casts == {"shares": 1, "out__stored": 1}


def test_what_only_moves_elements_does_not_add_casts() -> None:
    """float32 -> reshape -> transpose -> float32 would round for nothing; half -> reshape -> half would widen."""
    graph = model(
        "moves",
        [
            node("Softmax", ["x"], "shares"),
            node("Transpose", ["shares"], "turned", perm=[0, 2, 1]),
            node("LayerNormalization", ["turned", "ones"], "normed"),
            node("Transpose", ["normed"], "back", perm=[0, 2, 1]),
            node("MatMul", ["back", "weight"], "product"),
            node("Transpose", ["product"], "moved", perm=[0, 2, 1]),
            node("Neg", ["moved"], "out"),
        ],
        {"x": ["B", 4, 8]},
        {"out": ["B", 8, 4]},
        {"ones": np.ones(4), "weight": np.eye(8)},
    )
    found = types(lower_precision(graph, "fp16", protected_by_structure(GraphIndex(graph))))
    assert found["turned"] == TensorProto.FLOAT
    assert found["product"] == found["moved"] == TensorProto.FLOAT16


def test_a_weight_that_both_precisions_read_is_kept_in_both() -> None:
    graph = model(
        "both",
        [node("Mul", ["x", "scale"], "low"), node("Add", ["low", "scale"], "out")],
        {"x": ["B", 8]},
        {"out": ["B", 8]},
        {"scale": np.arange(8.0)},
    )
    lowered = lower_precision(graph, "fp16", {"make_out"})
    assert {tensor.data_type for tensor in lowered.graph.initializer} == {TensorProto.FLOAT, TensorProto.FLOAT16}
    x = np.ones((2, 8), np.float32)
    assert np.array_equal(run(lowered, {"x": x})["out"], run(graph, {"x": x})["out"])


def test_values_beyond_fp16_overflow_unless_their_range_was_measured(outlier_bundle: Any) -> None:
    float32 = load_model(outlier_bundle(30_000.0).graph_path("encoder"))
    index = GraphIndex(float32)
    structure = protected_by_structure(index)
    feeds = {"image": 3 + image()["image"]}
    expected = run(float32, feeds)["features"]
    naive = run(simulate_precision(float32, "fp16", structure), feeds)["features"]
    assert not np.isfinite(naive).all()

    ranges = measure_ranges(float32, [feeds])
    reasons = protected_by_range(index, ranges)
    assert {"make_scaled", "make_narrowed"} <= set(reasons)
    assert all("fp16 ends at 65504" in reason or "loses digits" in reason for reason in reasons.values())
    careful = run(simulate_precision(float32, "fp16", structure | reasons), feeds)["features"]
    assert np.abs(careful - expected).max() < 4e-3 * np.abs(expected).max()  # ten bits of mantissa, three roundings


def test_measured_ranges_are_the_largest_magnitudes_over_all_windows(bundle: Bundle) -> None:
    float32 = load_model(bundle.graph_path("encoder"))
    windows = [image(seed) for seed in range(3)]
    ranges = measure_ranges(float32, windows)
    float32.graph.output.append(helper.make_tensor_value_info("mixed", TensorProto.FLOAT, None))
    largest = max(float(np.abs(run(float32, window)["mixed"]).max()) for window in windows)
    assert ranges["mixed"] == pytest.approx(largest, rel=1e-6)  # ONNX Runtime fuses differently around an output
    assert "tokens" not in ranges  # moved, not computed


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_a_simulation_rounds_every_value_that_the_typed_graph_would_store(half: Half) -> None:
    """Against numpy, value by value: ONNX Runtime on a CPU would keep float32 between the operators."""
    weight = np.array([1.0001, 0.3, 7.7, 300.0])
    graph = model(
        "two",
        [node("Mul", ["x", "weight"], "a"), node("Mul", ["a", "weight"], "b"), node("Softmax", ["b"], "out")],
        {"x": ["B", 4]},
        {"out": ["B", 4]},
        {"weight": weight},
    )
    graph.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["B", 4]))
    x = np.array([[1.0001, 3.3e-5, 1.7, 1.1]], np.float32)
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT16 if half == "fp16" else TensorProto.BFLOAT16)

    def rounded(values: Any) -> Any:
        return np.asarray(values, np.float32).astype(kind).astype(np.float32)

    with np.errstate(over="ignore"):
        expected = rounded(rounded(rounded(x) * rounded(weight)) * rounded(weight))
    simulated = simulate_precision(graph, half, protected_by_structure(GraphIndex(graph)))
    assert np.array_equal(run(simulated, {"x": x})["b"], expected)
    assert np.isinf(expected[0, 3]) == (half == "fp16")


def test_a_tensor_that_is_not_finite_has_no_range_that_fits() -> None:
    graph = model("log", [node("Log", ["x"], "out")], {"x": ["B", 2]}, {"out": ["B", 2]}, {})
    assert measure_ranges(graph, [{"x": np.array([[0.0, 1.0]], np.float32)}]) == {"out": np.inf}


def test_a_tiny_bias_is_no_reason_for_float32_but_tiny_weights_are() -> None:
    graph = model(
        "tiny",
        [node("MatMul", ["x", "weight"], "product"), node("Add", ["product", "bias"], "out")],
        {"x": ["B", 8]},
        {"out": ["B", 8]},
        {"weight": np.full((8, 8), 1e-6), "bias": np.full(8, 1e-6)},
    )
    assert set(protected_by_range(GraphIndex(graph), {})) == {"make_product"}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["MatMul", "Gelu", "Softmax", "Add", "Transpose2", "Split"]), min_size=1, max_size=8))
def test_any_chain_of_layers_stays_close_and_valid(layers: list[str]) -> None:
    nodes, weights, tensor = [], {}, "x"
    generator = np.random.default_rng(0)
    for number, kind in enumerate(layers):
        name = f"t{number}"
        if kind in ("MatMul", "Add"):
            weights[f"w{number}"] = generator.normal(0, 0.3, (8, 8))
            nodes.append(node(kind, [tensor, f"w{number}"], name))
        elif kind == "Transpose2":
            nodes.append(node("Transpose", [tensor], f"{name}_turned", perm=[0, 2, 1]))
            nodes.append(node("Transpose", [f"{name}_turned"], name, perm=[0, 2, 1]))
        elif kind == "Split":
            nodes.append(helper.make_node("Split", [tensor], [f"{name}_a", f"{name}_b"], axis=1, num_outputs=2))
            nodes.append(node("Concat", [f"{name}_b", f"{name}_a"], name, axis=1))
        else:
            nodes.append(node(kind, [tensor], name))
        tensor = name
    nodes.append(node("Neg", [tensor], "out"))
    graph = model("chain", nodes, {"x": ["B", 8, 8]}, {"out": ["B", 8, 8]}, weights)
    name_nodes(graph.graph)
    lowered = lower_precision(graph, "fp16", protected_by_structure(GraphIndex(graph)))
    onnx.checker.check_model(lowered, full_check=True)
    x = generator.normal(size=(2, 8, 8)).astype(np.float32)
    expected, found = run(graph, {"x": x})["out"], run(lowered, {"x": x})["out"]
    assert found.dtype == np.float32
    # Ten bits of mantissa, at most eight layers, each of which may double an error.
    assert np.linalg.norm(found - expected) <= 2e-2 * max(float(np.linalg.norm(expected)), 1e-3)


def test_constants_inside_a_graph_are_lowered_like_weights(tmp_path: Path) -> None:
    constant = helper.make_node(
        "Constant", [], ["two"], name="two", value=numpy_helper.from_array(np.array(2.0, np.float32))
    )
    graph = helper.make_graph(
        [constant, helper.make_node("Mul", ["x", "two"], ["out"], name="mul")],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    lowered = lower_precision(load_model(tmp_path / "g.onnx"), "fp16", {})
    onnx.checker.check_model(lowered, full_check=True)
    assert run(lowered, {"x": np.array([1.5], np.float32)})["out"] == 3.0


def test_a_scale_of_int8_does_not_become_zero_in_half_precision() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weight"], name="dq"),
            helper.make_node("MatMul", ["x", "weight"], ["out"], name="product"),
        ],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(np.ones((2, 2), np.int8), "w"),
            numpy_helper.from_array(np.array(1e-9, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    lowered = lower_precision(made, "fp16", {})
    scales = [numpy_helper.to_array(t) for t in lowered.graph.initializer if t.name == "scale__half"]
    assert [float(scale) > 0 for scale in scales] == [True]


def test_nodes_without_names_get_some_that_do_not_repeat(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"], name="same"),
            helper.make_node("Neg", ["b"], ["out"], name="same"),
        ],
        "unnamed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "unused")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    names = [node.name for node in load_model(tmp_path / "g.onnx").graph.node]
    assert names == ["Neg_0", "same", "same_2"]
