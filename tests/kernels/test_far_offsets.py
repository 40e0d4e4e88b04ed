"""Tensors of more than 2^31 elements, in a sparse file: what the kernel does not touch takes no space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

from masksam_kernels.arguments import float32_bits
from masksam_kernels.depth_adapter import fused
from masksam_kernels.depth_adapter.blocks import block_for, padded_channels
from masksam_kernels.depth_adapter.launch import interpreted
from tests.kernels.middles import random_middle
from tests.kernels.test_middle import TOLERANCE

FRAMES = 2
HEIGHT, WIDTH, CHANNELS = 2, 4, 64
FAR_APART = 2**31 // (HEIGHT * WIDTH * CHANNELS) + 5
"""Rows between the two frames of one volume, and before the last volume: 2^31 elements and more."""


def sparse(path: Path, elements: int) -> NDArray[np.float16]:
    return np.memmap(path, np.float16, "w+", shape=(elements,))


def beginning(values: NDArray[np.float16]) -> Tensor:
    """A tensor where the values begin; the interpreter copies all of what it is given, so it is given little."""
    return torch.from_numpy(values[:16])


@pytest.mark.skipif(not interpreted(), reason="starts one program alone, as only the interpreter can")
def test_rows_beyond_two_to_the_31_elements_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of the volumes: its first row, its step along the depth and both rows' ends are far out."""
    case = random_middle(
        outer=1, frames=FRAMES, height=HEIGHT, width=WIDTH, channels=CHANNELS, dtype=torch.float16, device="cpu"
    )
    image = HEIGHT * WIDTH * CHANNELS
    rows = [FAR_APART - 1, 2 * FAR_APART - 1]  # of the last volume
    hidden = sparse(tmp_path / "hidden", FRAMES * FAR_APART * image)
    out = sparse(tmp_path / "out", FRAMES * FAR_APART * image)
    for row, values in zip(rows, case.hidden, strict=True):
        hidden[row * image : (row + 1) * image] = values.numpy().reshape(-1)
    block = block_for(None, CHANNELS)
    assert block.pixels >= HEIGHT * WIDTH  # so that a volume is one program
    start_at(FAR_APART - 1, monkeypatch)
    fused.depth_adapter_middle[(1,)](
        beginning(hidden),
        *case.tensors()[1:],
        FRAMES,
        FAR_APART,
        HEIGHT,
        WIDTH,
        float32_bits(case.eps),
        beginning(out),
        CHANNELS=CHANNELS,
        BLOCK_CHANNELS=padded_channels(CHANNELS),
        BLOCK_PIXELS=block.pixels,
        ACTIVATE=True,
    )
    found = np.stack([out[row * image : (row + 1) * image] for row in rows])
    expected = case.expected().numpy().reshape(FRAMES, image)
    assert np.linalg.norm(found - expected) <= TOLERANCE[torch.float16] * np.linalg.norm(expected)


def start_at(program: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the interpreter's only program another one than the first."""
    builder: Any = interpreter.interpreter_builder
    place: Callable[[int, int, int], None] = builder.set_grid_idx
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: place(x + program, y, z))
    monkeypatch.setattr(builder, "set_grid_dim", lambda *_: None)
    monkeypatch.setattr(builder, "grid_dim", (program + 1, 1, 1), raising=False)
