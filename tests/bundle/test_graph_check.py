"""Graphs that no runtime must be given: they loop, call themselves, or ask for memory that they do not bring."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="builds its network with onnx")

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from masksam_deploy.base.errors import BundleError
from masksam_deploy.bundle import graph_check
from masksam_deploy.bundle.graph_check import check_graph
from masksam_deploy.bundle.protobuf import WireReader
from tests.engines.small_bundle import Weights

DOMAIN = "masksam"
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "graph.onnx"


def model(nodes: list[NodeProto], functions: list[onnx.FunctionProto] | None = None) -> ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions or [])


def relu(**more: Any) -> NodeProto:
    return helper.make_node("Relu", ["x"], ["y"], **more)


def function(name: str, *called: str) -> onnx.FunctionProto:
    """A function that calls others one after the other; without any, one standard operator."""
    steps = [(kind, DOMAIN) for kind in called] or [("Relu", "")]
    nodes = [helper.make_node(kind, [f"t{i}"], [f"t{i + 1}"], domain=domain) for i, (kind, domain) in enumerate(steps)]
    return helper.make_function(DOMAIN, name, ["t0"], [f"t{len(steps)}"], nodes, OPSETS)


def call(name: str) -> NodeProto:
    return helper.make_node(name, ["x"], ["y"], domain=DOMAIN)


def refusal(path: Path, content: ModelProto | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    started = time.perf_counter()
    with pytest.raises(BundleError) as caught:
        check_graph(path)
    assert time.perf_counter() - started < 2
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500, message
    assert "found" in message and "expected" in message and "; " in message, message
    return message


def test_graphs_of_a_network_are_let_through(path: Path) -> None:
    weights = Weights(1.0)
    for graph in (weights.encoder(), weights.generator(), weights.decoder()):
        path.write_bytes(graph.SerializeToString())
        check_graph(path)


def test_functions_of_the_file_are_let_through(path: Path) -> None:
    path.write_bytes(
        model([call("outer")], [function("outer", "inner", "inner"), function("inner")]).SerializeToString()
    )
    check_graph(path)


def test_exported_adapters_as_nodes_are_let_through(cardiac_case: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from masksam_export.families.masksam.adapter_nodes import adapter_rewrites
    from masksam_export.families.masksam.checkpoint import load_checkpoint
    from masksam_export.families.masksam.graphs import graph_parts
    from masksam_export.families.masksam.model.masksam import MaskSAM
    from masksam_export.onnx_export import export_part

    loaded = load_checkpoint(cardiac_case / "checkpoint_final.pth")
    assert isinstance(loaded.model, MaskSAM)
    with graph_parts(loaded.model) as parts:
        part = next(part for part in parts if part.name == "decoder")
        export_part(part, tmp_path, rewrites=adapter_rewrites("node"))
    assert onnx.load(str(tmp_path / "decoder.onnx")).functions
    check_graph(tmp_path / "decoder.onnx")


@pytest.mark.parametrize("kind", sorted(graph_check.CONTROL_FLOW))
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_control_flow_is_refused(path: Path, kind: str, domain: str) -> None:
    assert f"the operator {kind}" in refusal(path, model([helper.make_node(kind, ["x"], ["y"], domain=domain)]))


def test_a_loop_within_a_function_is_refused(path: Path) -> None:
    hidden = helper.make_function(DOMAIN, "f", ["a"], ["b"], [helper.make_node("Loop", ["a"], ["b"])], OPSETS)
    assert "the operator Loop" in refusal(path, model([call("f")], [hidden]))


def test_any_graph_within_an_operator_is_refused(path: Path) -> None:
    body = helper.make_graph([relu()], "body", [], [])
    assert "a graph within an operator" in refusal(path, model([relu(body=body)]))
    assert "a graph within an operator" in refusal(path, model([relu(bodies=[body])]))


def test_other_operators_than_the_standards_are_refused(path: Path) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    assert "com.microsoft::EPContext" in refusal(path, model([node]))


def test_functions_that_double_39_times_are_refused(path: Path) -> None:
    chain = [function(f"f{i}", f"f{i + 1}", f"f{i + 1}") for i in range(38)]
    assert "more than 10 deep" in refusal(path, model([call("f0")], [*chain, function("f38")]))


def test_functions_that_multiply_few_levels_deep_are_refused(path: Path) -> None:
    chain = [function(f"f{i}", *[f"f{i + 1}"] * 100) for i in range(5)]
    message = refusal(path, model([call("f0")], [*chain, function("f5")]))
    assert f"more than {graph_check.MOST_NODES} operators" in message
    # Also where nothing calls them: the runtime reads them all the same.
    assert "operators" in refusal(path, model([relu()], [*chain, function("f5")]))


def test_functions_that_call_themselves_are_refused(path: Path) -> None:
    message = refusal(path, model([call("f")], [function("f", "g"), function("g", "f")]))
    assert "calls itself" in message


def test_functions_that_hide_standard_operators_or_each_other_are_refused(path: Path) -> None:
    hiding = helper.make_function("ai.onnx", "Relu", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], OPSETS)
    assert "among the standard operators" in refusal(path, model([relu()], [hiding]))
    assert "twice" in refusal(path, model([call("f")], [function("f"), function("f")]))


def test_too_many_nodes_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_check, "MOST_NODES", 9)
    assert "more than 9 operators" in refusal(path, model([relu()] * 10))


def test_a_part_that_comes_twice_is_looked_at_twice(path: Path) -> None:
    # Protobuf merges a graph that is written in two pieces.
    good, bad = model([relu()]), model([helper.make_node("Loop", ["x"], ["y"])])
    assert "Loop" in refusal(path, good.SerializeToString() + bad.SerializeToString())


def weight(dims: list[int], **fields: Any) -> TensorProto:
    return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, **fields)


def with_weight(tensor: TensorProto) -> ModelProto:
    made = model([relu()])
    made.graph.initializer.append(tensor)
    return made


@pytest.mark.parametrize("dims", [[2**40], [2**20, 2**20], [-1], [2**32, 2**32, 2**32], [1] * 100])
def test_a_weight_without_the_bytes_of_its_shape_is_refused(path: Path, dims: list[int]) -> None:
    assert "found a weight of" in refusal(path, with_weight(weight(dims, raw_data=bytes(4))))
    assert "found a weight of" in refusal(path, model([relu(value=weight(dims, raw_data=bytes(4)))]))


def test_sparse_weights_and_training_are_refused(path: Path) -> None:
    made = model([relu()])
    sparse = made.graph.sparse_initializer.add()
    sparse.dims.append(2**40)
    assert "sparse" in refusal(path, made)
    made = model([relu()])
    made.training_info.add()
    assert "training" in refusal(path, made)


def outside(location: str, offset: str = "0", length: str = "64") -> ModelProto:
    tensor = weight([16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return with_weight(tensor)


def test_weights_beside_the_graph_are_let_through(path: Path) -> None:
    graph = Weights(1.0).encoder()
    onnx.save(graph, str(path), save_as_external_data=True, location="encoder.onnx.data", size_threshold=64)
    assert path.with_name("encoder.onnx.data").stat().st_size
    check_graph(path)


@pytest.mark.parametrize(
    "location", ["../w.data", "/etc/passwd", "a/b.data", "w.bin", "", ".data", "w\0.data", "-.data"]
)
def test_weights_anywhere_else_are_refused(path: Path, location: str) -> None:
    assert "found weights in the file" in refusal(path, outside(location))


@pytest.mark.parametrize(("offset", "length"), [("0", "65"), ("1", "64"), ("-1", "64"), ("1e3", "1"), ("0", "9" * 30)])
def test_weights_beyond_the_end_of_their_file_are_refused(path: Path, offset: str, length: str) -> None:
    path.with_name("w.data").write_bytes(bytes(64))
    refusal(path, outside("w.data", offset, length))


def test_weights_that_share_their_bytes_are_refused(path: Path) -> None:
    path.with_name("w.data").write_bytes(bytes(64))
    made = outside("w.data")
    made.graph.initializer.append(made.graph.initializer[0])
    assert "more weights than 'w.data' holds" in refusal(path, made)


def test_weights_in_something_that_is_no_file_are_refused(path: Path) -> None:
    assert "found no file 'w.data'" in refusal(path, outside("w.data"))
    path.with_name("w.data").symlink_to("/dev/zero")
    assert "no regular file" in refusal(path, outside("w.data"))


def test_what_is_no_graph_is_refused(path: Path) -> None:
    for content in (b"", b"\0", b"PK\x03\x04", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x0f", b"\x08\x0a", bytes(1000)):
        refusal(path, content)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="named pipe"):
        check_graph(path)
    path.unlink()
    with pytest.raises(BundleError, match="No such file"):
        check_graph(path)


def test_a_file_of_endless_small_fields_is_given_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_check, "MOST_FIELDS", 10_000)
    assert "more than 10000 fields" in refusal(path, b"\x08\x01" * 20_000)


SMALL = Weights(1.0).decoder().SerializeToString()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(edits=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_graph_is_refused_or_let_through_and_nothing_else(path: Path, edits: list[tuple[int, int]]) -> None:
    damaged = bytearray(SMALL)
    for place, value in edits:
        damaged[place] = value
    path.write_bytes(damaged)
    try:
        check_graph(path)
    except BundleError as error:
        assert str(error).isprintable() and len(str(error)) < 500


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(size=st.integers(0, len(SMALL)), change=st.sampled_from([bytes.upper, lambda data: data * 2]))
def test_a_truncated_or_doubled_graph_raises_nothing_unexpected(
    path: Path, size: int, change: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(change(SMALL[:size]))
    try:
        check_graph(path)
    except BundleError as error:
        assert "found" in str(error)


def test_what_is_let_through_has_the_operators_that_onnx_reads(path: Path) -> None:
    """The walker and protobuf agree on what a file holds."""
    graph = Weights(1.0).encoder()
    path.write_bytes(graph.SerializeToString())
    with path.open("rb") as file:
        found = graph_check._Walk(WireReader(file.read(), 10**6), path.parent).model(path.stat().st_size)
    assert sum(found.nodes.values()) == len(graph.graph.node)
    assert {name for _, name in found.nodes} == {node.op_type for node in graph.graph.node}
    assert found.weights == len(graph.graph.initializer)
    assert np.all([domain == "" for domain, _ in found.nodes])


@pytest.mark.parametrize(
    "kind", ["GatherND", "ScatterND", "Max", "Unique", "ConstantOfShape", "Expand", "Range", "Tile", "LSTM", "NoSuch"]
)
def test_operators_that_no_export_has_are_refused(path: Path, kind: str) -> None:
    assert f"found the operator {kind}" in refusal(path, model([helper.make_node(kind, ["x", "x"], ["y"])]))


def whole(name: str, value: int = 3) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor("", TensorProto.INT64, [1], [value]))


INTEGERS = {
    "constants": [whole("a"), whole("b"), helper.make_node("Div", ["a", "b"], ["c"])],
    "the divisor alone": [whole("b"), helper.make_node("Div", ["x", "b"], ["c"])],
    "a constant in its short form": [
        helper.make_node("Constant", [], ["b"], value_ints=[0]),
        helper.make_node("Div", ["b", "b"], ["c"]),
    ],
    "cast": [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.INT32),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Div", ["b", "b"], ["c"]),
    ],
    "a truth, moved": [
        helper.make_node("Greater", ["x", "x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["b"], ["d"]),
        helper.make_node("Add", ["d", "d"], ["e"]),
        helper.make_node("Div", ["e", "e"], ["c"]),
    ],
    "in another order": [
        helper.make_node("Div", ["b", "b"], ["c"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.UINT8),
    ],
    "through a list": [
        whole("a"),
        helper.make_node("Concat", ["a", "a"], ["b"], axis=0),
        helper.make_node("Split", ["b"], ["d", "e"], axis=0, num_outputs=2),
        helper.make_node("Div", ["e", "e"], ["c"]),
    ],
}


@pytest.mark.parametrize("name", INTEGERS)
def test_whole_numbers_are_not_divided(path: Path, name: str) -> None:
    # By zero, or the least one by -1, the processor's trap ends the process.
    assert "divides whole numbers" in refusal(path, model([*INTEGERS[name], relu()]))


def test_a_function_is_given_no_whole_numbers(path: Path) -> None:
    # What it divides is not followed through its parameters.
    nodes = [whole("a"), helper.make_node("f", ["a"], ["b"], domain=DOMAIN), relu()]
    assert "divides whole numbers, or may" in refusal(path, model(nodes, [function("f")]))


def test_floating_point_is_divided(path: Path) -> None:
    nodes = [
        whole("a"),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["x", "a"], ["c"]),
        helper.make_node("Div", ["c", "b"], ["y"]),
    ]
    path.write_bytes(model(nodes).SerializeToString())
    check_graph(path)
