"""A block of the image encoder against its definition in float64, and what becomes of it in a graph."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.encoder_rewrites import BlockPart, PlainBlock, random_block
from masksam_export.families.masksam.adapter_nodes import adapter_rewrites
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.graphs import traceable
from masksam_export.families.masksam.model.image_encoder import Block
from masksam_export.families.masksam.official import ACDC
from masksam_export.onnx_export import export_part

TOLERANCE = 1e-11  # float64, values near one


def small(*, grid: int, window: int, frames: int, heads: int = 2) -> ModelConfig:
    """One windowed and one global block, positions made for another grid."""
    return replace(
        ACDC,
        grid=grid,
        window=window,
        frames=frames,
        heads=heads,
        depth=2,
        global_blocks=(1,),
        canvas_grid=8,
        embed_dim=12 * heads,
        mlp_dim=16,
        adapter_dim=8,
    )


def windows_of(config: ModelConfig, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch * config.frames, config.grid, config.grid, config.embed_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    grid=st.integers(1, 9),
    window=st.integers(1, 5),
    frames=st.integers(1, 5),
    heads=st.integers(1, 3),
    batch=st.integers(1, 2),
    windowed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_block_equals_its_definition(
    grid: int, window: int, frames: int, heads: int, batch: int, windowed: bool, seed: int
) -> None:
    config = small(grid=grid, window=window, frames=frames, heads=heads)
    block = random_block(config, windowed=windowed).double()
    x = windows_of(config, batch, seed)
    torch.testing.assert_close(block(x), PlainBlock(block)(x), rtol=0, atol=TOLERANCE)


def test_gradients_equal_those_of_the_definition() -> None:
    config = small(grid=5, window=4, frames=3)
    block = random_block(config, windowed=True).double().requires_grad_(True)
    x = windows_of(config, 2, seed=1)
    expected = gradients(block, PlainBlock(block)(x))
    found = gradients(block, block(x))
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name].numpy(), gradient.numpy(), rtol=0, atol=1e-9, err_msg=name)


def gradients(block: Block, y: Tensor) -> dict[str, Tensor]:
    """Of the mean square, by parameter."""
    names, parameters = zip(*block.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(y.square().mean(), parameters), strict=True))


def test_only_the_adapter_s_first_product_is_computed_for_padding(tmp_path: Path) -> None:
    config = small(grid=5, window=4, frames=3)
    block = random_block(config, windowed=True)
    with traceable(block):
        export_part(BlockPart("block", block, config), tmp_path, rewrites=adapter_rewrites())
        export_part(BlockPart("plain", PlainBlock(block), config), tmp_path, rewrites=adapter_rewrites())
    qkv, proj, first, second = (24, 72), (24, 24), (24, 8), (8, 24)
    rest = [(24, 8), (8, 24), (24, 16), (16, 24)]
    assert linears(tmp_path / "plain.onnx", side=4) == sorted([qkv, proj, first, second])
    assert linears(tmp_path / "block.onnx", side=4) == [first]
    assert linears(tmp_path / "block.onnx", side=5) == sorted([qkv, proj, second, *rest])
    assert weights(tmp_path / "block.onnx") <= weights(tmp_path / "plain.onnx")


def test_an_exported_block_agrees(tmp_path: Path) -> None:
    config = small(grid=5, window=4, frames=3)
    block = random_block(config, windowed=True)
    with traceable(block):
        export_part(BlockPart("block", block, config), tmp_path, rewrites=adapter_rewrites())
    x = windows_of(config, 2, seed=2)
    session = onnxruntime.InferenceSession(str(tmp_path / "block.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.float().reshape(2, config.frames, *x.shape[1:]).numpy()})[0]
    expected = PlainBlock(block.double())(x).reshape(found.shape)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)  # float32, values near one


def linears(path: Path, *, side: int) -> list[tuple[int, ...]]:
    """Sizes of the matrices that squares of `side` x `side` tokens are multiplied with."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    matrices = {value.name: tuple(value.dims) for value in graph.initializer if len(value.dims) == 2}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.input)}
    products = [node.input for node in graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    return sorted(matrices[matrix] for x, matrix in products if shapes[x][1:3] == [side, side])


def weights(path: Path) -> int:
    """How many numbers a graph stores."""
    return sum(math.prod(value.dims) for value in onnx.load(path).graph.initializer)
