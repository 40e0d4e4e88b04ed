"""The adapter's node: every body equals the reference, and graphs hold what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from benchmarks.adapter_formulations import adapter_model, random_tensors, reference_output, session
from masksam_export.families.masksam.adapter_nodes import (
    FORMULATIONS,
    OP_TYPE,
    Adapters,
    Formulation,
    adapter_function,
    adapter_nodes,
    drop_bodies,
    give_bodies,
    inline_bodies,
    settle_adapters,
)
from tests.export.golden import Golden
from tests.export.test_onnx_export import CHAIN_TOLERANCE, run_chain

GRAPHS = ("encoder", "prompt_generator", "decoder")


def run(model: onnx.ModelProto, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    out: NDArray[np.float32] = session(model, threads=1).run(None, {"hidden": hidden})[0]
    return out


@settings(max_examples=15, deadline=None)
@given(
    formulation=st.sampled_from(FORMULATIONS),
    outer=st.integers(1, 2),
    frames=st.integers(1, 4),
    inner=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    channels=st.integers(3, 20),
    seed=st.integers(0, 2**31),
)
def test_every_body_equals_the_reference(
    formulation: Formulation,
    outer: int,
    frames: int,
    inner: int,
    height: int,
    width: int,
    channels: int,
    seed: int,
) -> None:
    tensors = random_tensors(outer * frames * inner, height, width, channels, seed)
    model = adapter_model(tensors, frames=frames, inner=inner, body=adapter_function(formulation))
    expected = reference_output(tensors, frames=frames, inner=inner)
    # float32 sums; the norm of few channels enlarges what they are off by.
    np.testing.assert_allclose(run(model, tensors["hidden"]), expected, rtol=1e-4, atol=1e-4)


def test_a_body_can_be_exchanged_inlined_and_dropped() -> None:
    tensors = random_tensors(6, 3, 4, 8, seed=0)
    model = onnx_ir.from_proto(adapter_model(tensors, frames=3, inner=1, body=adapter_function("volume")))
    give_bodies(model, "planes")
    assert len(model.functions) == 1
    with_body = onnx_ir.to_proto(model)
    drop_bodies(model)
    (node,) = adapter_nodes(model)
    assert not model.functions
    assert node.attributes["plugin_namespace"].as_string() == "masksam"
    give_bodies(model, "stacked")
    inline_bodies(model)
    assert not adapter_nodes(model)
    assert {domain for domain in model.opset_imports if domain} == set()
    inlined = onnx_ir.to_proto(model)
    np.testing.assert_allclose(run(inlined, tensors["hidden"]), run(with_body, tensors["hidden"]), rtol=0, atol=1e-5)


def test_a_graph_without_adapters_is_left_alone() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N"])],
    )
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    give_bodies(model)
    assert not model.functions
    assert dict(model.opset_imports) == {"": 20}


@pytest.mark.parametrize("adapters", ["node", *FORMULATIONS])
def test_graphs_hold_the_adapters_as_asked_for_and_stay_right(
    adapters: Adapters, node_bundle: Path, tmp_path: Path
) -> None:
    golden = Golden.read("tiny_acdc")
    folder = node_bundle if adapters == "node" else settled(node_bundle, adapters, tmp_path)
    kinds: dict[str, int] = {}
    for name in GRAPHS:
        graph = onnx.load(folder / f"{name}.onnx").graph
        kinds[name] = sum(node.op_type == OP_TYPE for node in graph.node)
    config = golden.model().config
    nodes = {"encoder": 2 * config.depth, "prompt_generator": 0, "decoder": config.decoder_depth}
    assert kinds == (nodes if adapters == "node" else dict.fromkeys(nodes, 0))
    scores = run_chain(folder, golden.arrays["input"])["semseg"]
    found, expected = golden.expected("out/semseg", torch.from_numpy(scores))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=CHAIN_TOLERANCE)


def settled(bundle: Path, adapters: Adapters, folder: Path) -> Path:
    """A bundle's graphs with their adapters settled as export settles them after tracing."""
    for name in GRAPHS:
        model = onnx_ir.load(bundle / f"{name}.onnx")
        settle_adapters(model, adapters)
        onnx_ir.save(model, folder / f"{name}.onnx")
    return folder
