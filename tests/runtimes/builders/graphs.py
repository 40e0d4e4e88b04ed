"""Small typed ONNX graphs: matrix products in a row, as float32, half with float32 islands, bfloat16 or Q/DQ int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksam_deploy.runtimes.registry import Precision

onnx: Any = pytest.importorskip("onnx", reason="needs the 'export' extra")

WIDTH = 64
TOKENS = 10


def write_graph(folder: Path, kind: Precision, layers: int = 3, name: str | None = None) -> Path:
    """A graph `x [B, 10, 64]` -> `out` whose products are named `/blocks/<i>/MatMul`; ports are float32."""
    path = folder / (name or f"{kind}.onnx")
    onnx.save(model(kind, layers), str(path))
    return path


def model(kind: Precision, layers: int = 3) -> Any:
    """See `write_graph`. In `fp16`, a float32 softmax stands between two casts after the first product."""
    helper = onnx.helper
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}.get(kind)
    nodes: list[Any] = []
    weights: list[Any] = []
    tensor = "x"
    if half is not None:
        nodes.append(helper.make_node("Cast", ["x"], ["narrow"], name="narrow", to=half))
        tensor = "narrow"
    generator = np.random.default_rng(0)
    for index in range(layers):
        values = (generator.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32)
        operand, weight = tensor, f"w{index}"
        if kind == "int8":
            operand, weight = _quantised(nodes, weights, tensor, values, index)
        else:
            weights.append(_float_weight(values, weight, half))
        tensor = f"y{index}"
        nodes.append(helper.make_node("MatMul", [operand, weight], [tensor], name=f"/blocks/{index}/MatMul"))
        if index == 0:
            tensor = _softmax(nodes, tensor, half)
    nodes.append(helper.make_node("Cast", [tensor], ["out"], name="widen", to=onnx.TensorProto.FLOAT))
    port = onnx.TensorProto.FLOAT, ["B", TOKENS, WIDTH]
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", *port)],
        [helper.make_tensor_value_info("out", *port)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _float_weight(values: np.ndarray, name: str, half: int | None) -> Any:
    if half == onnx.TensorProto.BFLOAT16:  # which numpy does not have
        return onnx.helper.make_tensor(name, half, values.shape, values.flatten())
    return onnx.numpy_helper.from_array(values.astype(np.float32 if half is None else np.float16), name)


def _softmax(nodes: list[Any], tensor: str, half: int | None) -> str:
    make = onnx.helper.make_node
    if half is None:
        nodes.append(make("Softmax", [tensor], ["soft"], name="softmax"))
        return "soft"
    nodes.append(make("Cast", [tensor], ["wide"], name="island_in", to=onnx.TensorProto.FLOAT))
    nodes.append(make("Softmax", ["wide"], ["soft"], name="softmax"))
    nodes.append(make("Cast", ["soft"], ["soft_narrow"], name="island_out", to=half))
    return "soft_narrow"


def _quantised(nodes: list[Any], weights: list[Any], tensor: str, values: np.ndarray, index: int) -> tuple[str, str]:
    """Per-channel symmetric weights, symmetric activations."""
    scales = np.abs(values).max(axis=0) / 127
    constants = {
        f"w{index}_q": np.clip(np.round(values / scales), -127, 127).astype(np.int8),
        f"w{index}_scale": scales.astype(np.float32),
        f"w{index}_zero": np.zeros(WIDTH, np.int8),
        f"a{index}_scale": np.float32(0.05),
        f"a{index}_zero": np.int8(0),
    }
    weights.extend(onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    make = onnx.helper.make_node
    scale = [f"a{index}_scale", f"a{index}_zero"]
    nodes.append(make("QuantizeLinear", [tensor, *scale], [f"a{index}_q"], name=f"quantise{index}"))
    nodes.append(make("DequantizeLinear", [f"a{index}_q", *scale], [f"a{index}"], name=f"dequantise{index}"))
    stored = [f"w{index}_q", f"w{index}_scale", f"w{index}_zero"]
    nodes.append(make("DequantizeLinear", stored, [f"w{index}"], name=f"weights{index}", axis=1))
    return f"a{index}", f"w{index}"
