"""Reading layer types out of the inspector's JSON, as NVIDIA documents it for TensorRT 10 and 11 (no GPU here)."""

from __future__ import annotations

import json

import pytest

from masksam_deploy.base.errors import EngineError
from masksam_deploy.runtimes.builder import check_engine_precision
from masksam_deploy.runtimes.tensorrt.inspector import layer_types


def layer(kind: str, **tensor: str) -> dict[str, object]:
    return {"Name": f"a {kind}", "LayerType": kind, "Inputs": [{"Name": "x", "Dimensions": [1, 8], **tensor}]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
    ],
)
def test_the_texts_of_tensorrt_10_are_understood(text: str, expected: str) -> None:
    information = json.dumps({"Layers": [layer("gemm", **{"Format/Datatype": text})], "Bindings": ["x"]})
    assert layer_types(information).layers == {expected: 1}


def test_the_fields_of_tensorrt_11_are_understood() -> None:
    tensor = {"DataType": "Half", "Format": "Row major linear FP16 format (kLINEAR)"}
    information = json.dumps({"Layers": [layer("gemm", **tensor)], "I/O Tensors": [{"Name": "x"}]})
    assert layer_types(information).layers == {"fp16": 1}


def test_layers_that_only_move_numbers_do_not_count() -> None:
    half, full = {"Format/Datatype": "Half"}, {"Format/Datatype": "Float"}
    layers = [layer("Reformat", **half), layer("CaskConvolution", **full), layer("Constant", **half)]
    found = layer_types(json.dumps({"Layers": layers})).layers
    assert found == {"fp32": 1}
    with pytest.raises(EngineError, match="the engine: found layers: 1 in fp32, expected some in fp16"):
        check_engine_precision(found, "fp16", "the engine")


def test_a_layer_that_hides_many_is_counted_as_such() -> None:
    node = layer("Myelin", **{"Format/Datatype": "Float"})
    node["Name"] = "{ForeignNode[/blocks/0/MatMul...softmax]}"
    assert layer_types(json.dumps({"Layers": [node]})).layers == {"fused": 1}


@pytest.mark.parametrize("layers", [["conv1", "conv2"], [], [layer("gemm", **{"Format/Datatype": "N/A"})]])
def test_names_without_types_are_not_taken_for_a_reading(layers: list[object]) -> None:
    found = layer_types(json.dumps({"Layers": layers}))
    assert found.layers is None
    assert found.reason == "the inspector gave names of layers, but no types"
