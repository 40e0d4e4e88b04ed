"""INT8: which layers, from which ranges, in which form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.graph_types import GraphIndex, load_model
from masksam_deploy.engines.precision import lower_precision
from masksam_deploy.engines.protection import protected_by_structure
from masksam_deploy.engines.quantisation import Calibrator, Runtime, activation_ranges, quantisable, quantise
from masksam_deploy.runtimes.onnxruntime import import_runtime
from tests.engines.small_bundle import PATCH, model, node
from tests.engines.test_precision import run

Windows = Callable[[], Iterator[dict[str, Any]]]


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> onnx.ModelProto:
    return load_model(bundle.graph_path("encoder"))


def windows() -> Iterator[dict[str, Any]]:
    for seed in range(3):
        yield {"image": np.random.default_rng(seed).normal(size=(1, 1, *PATCH)).astype(np.float32)}


def constants(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def quantised_encoder(encoder: onnx.ModelProto, calibrator: Calibrator = "percentile") -> onnx.ModelProto:
    nodes = quantisable(GraphIndex(encoder), {})
    return quantise(encoder, nodes, activation_ranges(encoder, nodes, windows, calibrator))


def test_linears_and_dense_convolutions_are_quantised_where_it_pays(encoder: onnx.ModelProto) -> None:
    # The first convolution sums 27 terms: quantising its input would cost more than it saves.
    assert quantisable(GraphIndex(encoder), {}) == ["make_mixed", "make_narrowed"]
    assert quantisable(GraphIndex(encoder), {"make_mixed": "why"}) == ["make_narrowed"]


def test_depthwise_convolutions_and_tables_of_positions_are_left_alone() -> None:
    graph = model(
        "others",
        [
            node("Conv", ["x", "depthwise"], "mixed", group=64, pads=[1, 1, 1, 1]),
            node("MatMul", ["mixed", "table"], "positions"),
            node("MatMul", ["positions", "positions"], "attention"),
            node("Conv", ["attention", "dense"], "out"),
        ],
        {"x": ["B", 64, 32, 32]},
        {"out": ["B", 64, 32, 32]},
        {
            "depthwise": np.ones((64, 1, 3, 3)),
            "table": np.ones((1, 64, 32, 32)),
            "dense": np.ones((64, 64, 1, 1)),
        },
    )
    assert quantisable(GraphIndex(graph), {}) == ["make_out"]


def test_fixed_matrices_around_a_plane_are_no_linears() -> None:
    graph = model(
        "resampled",
        [
            node("MatMul", ["rows", "x"], "halfway"),
            node("MatMul", ["halfway", "columns"], "resampled"),
            node("MatMul", ["resampled", "learned"], "out"),
        ],
        {"x": ["B", 4, 80, 80]},
        {"out": ["B", 4, 64, 48]},
        {"rows": np.ones((64, 80)), "columns": np.ones((80, 64)), "learned": np.ones((64, 48))},
    )
    assert quantisable(GraphIndex(graph), {}) == ["make_out"]


@pytest.mark.parametrize(("runtime", "centre"), [("onnxruntime", np.uint8(128)), ("tensorrt", np.int8(0))])
def test_weights_are_symmetric_per_channel_and_biases_stay_in_float32(
    encoder: onnx.ModelProto, runtime: Runtime, centre: np.generic
) -> None:
    nodes = quantisable(GraphIndex(encoder), {})
    quantised = quantise(encoder, nodes, activation_ranges(encoder, nodes, windows), runtime=runtime)
    onnx.checker.check_model(quantised, full_check=True)
    values = constants(quantised)
    weight = values["mix_quantized"]
    assert weight.dtype == np.int8
    assert values["mix_scale"].shape == (32,)
    assert not values["mix_zero_point"].any()
    activations = {n.input[2] for n in quantised.graph.node if n.op_type == "QuantizeLinear"}
    assert activations
    for name in activations:
        assert values[name] == centre
        assert values[name].dtype == centre.dtype
    restored = weight.astype(np.float32) * values["mix_scale"]
    assert np.abs(restored - constants(encoder)["mix"]).max() <= values["mix_scale"].max() / 2 + 1e-7
    assert values["mix_bias"].dtype == np.float32


@pytest.mark.parametrize("calibrator", ["percentile", "entropy"])
def test_an_int8_graph_computes_nearly_the_same(encoder: onnx.ModelProto, calibrator: Calibrator) -> None:
    quantised = quantised_encoder(encoder, calibrator)
    feeds = next(windows())
    expected, found = run(encoder, feeds)["features"], run(quantised, feeds)["features"]
    # Two layers of eight bits: a hundredth of the norm; entropy may also clip rare values.
    assert np.linalg.norm(found - expected) < (0.02 if calibrator == "percentile" else 0.1) * np.linalg.norm(expected)
    assert not np.array_equal(found, expected)


def test_activation_ranges_are_symmetric_and_reach_what_was_seen(encoder: onnx.ModelProto) -> None:
    ranges = activation_ranges(encoder, ["make_mixed"], windows)
    assert set(ranges) == {"tokens"}
    low, high = ranges["tokens"]
    largest = max(float(np.abs(run(with_output(encoder, "tokens"), feeds)["tokens"]).max()) for feeds in windows())
    assert low == -high
    assert 0.95 * largest <= high <= largest * (1 + 1e-6)


def test_ranges_do_not_depend_on_how_many_tensors_leave_the_runtime_at_once(
    encoder: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = quantisable(GraphIndex(encoder), {})
    together = activation_ranges(encoder, nodes, windows)
    monkeypatch.setattr("masksam_deploy.engines.quantisation.GROUP_BYTES", 1)
    assert activation_ranges(encoder, nodes, windows) == together


def test_of_large_activations_evenly_spaced_rows_tell_nearly_the_same_range(monkeypatch: pytest.MonkeyPatch) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 40, 4096, 8])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", 40, 4096, 16])
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 16), np.float32), "w")
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["t"], "relu"),
        onnx.helper.make_node("MatMul", ["t", "w"], ["y"], "mm"),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [weight])
    model = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    )
    # Channel 3 is a hundred times the others: rows may be left out, channels may not.
    scale = np.where(np.arange(8) == 3, 100, 1).astype(np.float32)
    generator = np.random.default_rng(1)
    feeds = [{"x": generator.standard_normal((1, 40, 4096, 8), np.float32) * scale} for _ in range(2)]
    whole = activation_ranges(model, ["mm"], lambda: feeds)
    monkeypatch.setattr("masksam_deploy.engines.quantisation.SAMPLED_VALUES", 2**17)
    before = model.SerializeToString()
    sampled = activation_ranges(model, ["mm"], lambda: feeds)
    assert model.SerializeToString() == before
    assert set(sampled) == set(whole) == {"t"}
    assert sampled != whole
    assert sampled["t"][1] == pytest.approx(whole["t"][1], rel=0.1)


def test_few_rows_are_all_looked_at(encoder: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = quantisable(GraphIndex(encoder), {})
    expected = activation_ranges(encoder, nodes, windows)
    monkeypatch.setattr("masksam_deploy.engines.quantisation.SAMPLED_VALUES", 1)
    found = activation_ranges(encoder, nodes, windows)
    assert set(found) == set(expected)
    for name, (low, high) in expected.items():
        assert low == -high
        assert 0.5 * high <= found[name][1] <= high * (1 + 1e-6)


def test_the_rest_of_an_int8_graph_can_be_half_precision(encoder: onnx.ModelProto) -> None:
    mixed = lower_precision(quantised_encoder(encoder), "fp16", protected_by_structure(GraphIndex(encoder)))
    onnx.checker.check_model(mixed, full_check=True)
    found = GraphIndex(mixed).types
    assert found["mix_quantized"] == TensorProto.INT8
    assert found["mixed"] == TensorProto.FLOAT16
    feeds = next(windows())
    expected = run(encoder, feeds)["features"]
    assert np.linalg.norm(run(mixed, feeds)["features"] - expected) < 0.02 * np.linalg.norm(expected)


def test_who_is_not_quantised_reads_the_same_float32_as_before() -> None:
    """A residual stream, and a weight that two nodes share: the tool would give both in eight bits to everybody."""
    graph = model(
        "residual",
        [
            node("MatMul", ["x", "weight"], "first"),
            node("Add", ["x", "first"], "stream"),
            node("MatMul", ["stream", "other"], "second"),
            node("Add", ["stream", "second"], "summed"),
            node("Mul", ["summed", "weight"], "out"),
        ],
        {"x": ["B", 64, 64]},
        {"out": ["B", 64, 64]},
        {"weight": np.random.default_rng(0).normal(size=(64, 64)), "other": np.eye(64)},
    )
    x = np.random.default_rng(1).normal(size=(1, 64, 64)).astype(np.float32)
    nodes = ["make_first", "make_second"]
    ranges = activation_ranges(graph, nodes, lambda: iter([{"x": x}]))
    quantised = quantise(graph, nodes, ranges)
    onnx.checker.check_model(quantised, full_check=True)
    inputs = {n.name: list(n.input) for n in quantised.graph.node}
    assert inputs["make_stream"] == ["x", "first"]
    assert inputs["make_summed"] == ["stream", "second"]
    assert inputs["make_out"] == ["summed", "weight"]
    assert all("Dequantize" in name for chosen in nodes for name in inputs[chosen])


def test_layers_that_share_a_weight_load_and_compute_the_same() -> None:
    graph = model(
        "tied",
        [
            node("Conv", ["x", "shared"], "a"),
            node("Conv", ["a", "shared"], "b"),
            node("Conv", ["b", "shared"], "out"),
        ],
        {"x": ["B", 64, 4, 8, 8]},
        {"out": ["B", 64, 4, 8, 8]},
        {"shared": np.random.default_rng(0).normal(0, 0.15, (64, 64, 1, 1, 1))},
    )
    nodes = ["make_a", "make_b", "make_out"]
    x = np.random.default_rng(1).normal(size=(1, 64, 4, 8, 8)).astype(np.float32)
    ranges = activation_ranges(graph, nodes, lambda: iter([{"x": x}]))
    quantised = quantise(graph, nodes, ranges)
    expected = run(graph, {"x": x})["out"]
    found = run(quantised, {"x": x}, exact=True)["out"]
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_layers_that_read_one_tensor_are_both_computed_in_int8(tmp_path: Path) -> None:
    """ONNX Runtime on x86 leaves them in float32 if that tensor is signed."""
    graph = model(
        "shared",
        [
            node("LayerNormalization", ["x", "gain"], "normed"),
            node("MatMul", ["normed", "wide"], "first"),
            node("MatMul", ["normed", "narrow"], "second"),
        ],
        {"x": ["B", 64, 64]},
        {"first": ["B", 64, 128], "second": ["B", 64, 32]},
        {
            "gain": np.ones(64),
            "wide": np.random.default_rng(0).normal(size=(64, 128)),
            "narrow": np.random.default_rng(1).normal(size=(64, 32)),
        },
    )
    nodes = ["make_first", "make_second"]
    x = np.random.default_rng(2).normal(size=(1, 64, 64)).astype(np.float32)
    quantised = quantise(graph, nodes, activation_ranges(graph, nodes, lambda: iter([{"x": x}])))
    expected, found = run(graph, {"x": x}), run(quantised, {"x": x}, exact=True)
    for name, values in expected.items():
        assert np.linalg.norm(found[name] - values) < 0.02 * np.linalg.norm(values)
    assert "MatMul" not in optimised_operators(quantised, tmp_path)


def test_convolutions_keep_their_results_in_float_where_the_runtime_allows_it() -> None:
    graph = model(
        "two",
        [node("Conv", ["x", "a"], "middle"), node("Conv", ["middle", "b"], "out")],
        {"x": ["B", 64, 8, 8]},
        {"out": ["B", 64, 8, 8]},
        {"a": np.ones((64, 64, 1, 1)) / 64, "b": np.ones((64, 64, 1, 1)) / 64},
    )
    nodes = ["make_middle", "make_out"]
    x = np.random.default_rng(1).normal(size=(1, 64, 8, 8)).astype(np.float32)
    ranges = activation_ranges(graph, nodes, lambda: iter([{"x": x}]))
    runtimes: dict[Runtime, int] = {"onnxruntime": 3, "tensorrt": 2}
    for runtime, count in runtimes.items():
        made = quantise(graph, nodes, ranges, runtime=runtime)
        assert sum(n.op_type == "QuantizeLinear" for n in made.graph.node) == count


def test_weights_in_a_file_of_their_own_are_quantised_too(
    encoder: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = quantised_encoder(encoder)
    monkeypatch.setattr("masksam_deploy.engines.graph_types.EMBED_LIMIT", 1)
    found = quantised_encoder(encoder)
    assert {name: value.tobytes() for name, value in constants(found).items()} == {
        name: value.tobytes() for name, value in constants(expected).items()
    }


def optimised_operators(graph: onnx.ModelProto, folder: Path) -> list[str]:
    """What ONNX Runtime makes of a graph."""
    path = folder / "optimised.onnx"
    options = import_runtime().SessionOptions()
    options.log_severity_level = 3  # it warns that what it optimised is for this machine
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.x64quantprecision", "1")
    import_runtime().InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(path).graph.node]


def with_output(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    watched.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return watched
