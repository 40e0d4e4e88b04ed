"""Small parts that several stages share."""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from masksam_export.families.masksam.config import Kernel, ModelConfig

FloatMatrix: TypeAlias = NDArray[np.float64]


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of a channel-first map, at each position (SAM's LayerNorm2d, any rank)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, ...]` -> `[N, C, ...]`."""
        return self.channel_last(x.movedim(1, -1)).movedim(-1, 1)

    def channel_last(self, x: Tensor) -> Tensor:
        """The same on `[..., C]`."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Mlp(nn.Module):
    """Two linear layers around an activation: exact GELU in the encoder, ReLU in the decoder."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        return self.lin2(self.act(self.lin1(x)))


class ReluStack(nn.Module):
    """Linear layers with ReLU between them (SAM's hypernetworks and IoU head)."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., widths[0]]` -> `[..., widths[-1]]`."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class ConvBlock(nn.Module):
    """Conv3d -> instance norm over (T, H, W) -> activation.

    `all_modules` holds the same modules again, because official state dicts list each of them twice.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: Kernel,
        activation: nn.Module,
        *,
        bias: bool,
        affine: bool,
        eps: float,
    ) -> None:
        super().__init__()
        kz, ky, kx = kernel
        padding = ((kz - 1) // 2, (ky - 1) // 2, (kx - 1) // 2)
        self.conv = nn.Conv3d(*channels, kernel, padding=padding, bias=bias)
        self.norm = nn.InstanceNorm3d(channels[1], eps=eps, affine=affine)
        self.all_modules = nn.Sequential(self.conv, self.norm, activation)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, i, T, H, W]` -> `[B, o, T, H, W]`."""
        return self.all_modules(x)


class StackedConvBlocks(nn.Module):
    """`count` conv blocks in a row, the first of which changes the number of channels."""

    def __init__(
        self,
        count: int,
        channels: tuple[int, int],
        kernel: Kernel,
        config: ModelConfig,
        *,
        activation: nn.Module | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        inputs, outputs = channels
        self.convs = nn.Sequential(
            *(
                ConvBlock(
                    (inputs if index == 0 else outputs, outputs),
                    kernel,
                    activation or nn.LeakyReLU(config.leaky_slope),
                    bias=config.conv_bias if bias is None else bias,
                    affine=config.norm_affine,
                    eps=config.norm_eps,
                )
                for index in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, i, T, H, W]` -> `[B, o, T, H, W]`."""
        return self.convs(x)


def upsampling(inputs: int, outputs: int, *, bias: bool) -> nn.ConvTranspose3d:
    """A transposed convolution that doubles rows and columns and leaves frames alone."""
    return nn.ConvTranspose3d(inputs, outputs, (1, 2, 2), stride=(1, 2, 2), bias=bias)


def average_pool_plane(x: Tensor, side: int) -> Tensor:
    """Adaptive average pooling of `[B, C, T, H, W]` to `[B, C, T, side, side]`.

    Written as a strided mean, or as two small matrix products where `side` does not divide the plane, because
    adaptive pooling itself has no ONNX form.
    """
    height, width = int(x.shape[-2]), int(x.shape[-1])
    if height % side == 0 and width % side == 0:
        return functional.avg_pool3d(x, (1, height // side, width // side))
    return resize_plane(x, averaging_matrix(height, side), averaging_matrix(width, side))


def resize_plane(x: Tensor, rows: FloatMatrix, columns: FloatMatrix) -> Tensor:
    """`rows [h', H]` and `columns [w', W]` applied to the last two axes of `[..., H, W]`."""
    # From nested lists, because that is what tracing turns into one constant.
    left = torch.tensor(rows.tolist(), dtype=x.dtype).to(x.device)
    right = torch.tensor(columns.T.tolist(), dtype=x.dtype).to(x.device)
    return left @ x @ right


def averaging_matrix(size: int, bins: int) -> FloatMatrix:
    """`[bins, size]`: bin i is the mean over floor(i*size/bins) .. ceil((i+1)*size/bins)."""
    matrix = np.zeros((bins, size))
    for i in range(bins):
        low, high = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, low:high] = 1.0 / (high - low)
    return matrix


def linear_matrix(size: int, new_size: int) -> FloatMatrix:
    """`[new_size, size]`: linear interpolation on half-pixel centres, edges replicated."""
    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        centre = min(max((i + 0.5) * size / new_size - 0.5, 0.0), size - 1.0)
        low = int(centre)
        high = min(low + 1, size - 1)
        matrix[i, low] += 1.0 - (centre - low)
        matrix[i, high] += centre - low
    return matrix
