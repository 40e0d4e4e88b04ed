"""Random arguments of the adapter's middle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from masksam_kernels.depth_adapter import reference
from masksam_kernels.depth_adapter.launch import launch_middle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Middle:
    """Arguments of one call."""

    hidden: Tensor
    bias: Tensor | None
    taps: Tensor
    taps_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    frames: int
    inner: int
    eps: float

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        return self.hidden, self.bias, self.taps, self.taps_bias, self.norm_weight, self.norm_bias

    def expected(self) -> Tensor:
        """In float64, from the very numbers that the kernel gets."""
        hidden, bias, taps, taps_bias, norm_weight, norm_bias = (
            None if tensor is None else tensor.double() for tensor in self.tensors()
        )
        assert hidden is not None
        assert taps is not None
        assert taps_bias is not None
        assert norm_weight is not None
        assert norm_bias is not None
        return reference.depth_adapter_middle(
            hidden, bias, taps, taps_bias, norm_weight, norm_bias, frames=self.frames, inner=self.inner, eps=self.eps
        )

    def fused(self) -> Tensor:
        """From the kernel, into a buffer full of NaN: what it does not write shows."""
        out = torch.full_like(self.hidden, float("nan"))
        launch_middle(out, *self.tensors(), frames=self.frames, inner=self.inner, eps=self.eps)
        return out

    def error(self) -> float:
        """||fused - expected|| / ||expected||."""
        expected = self.expected()
        return float((self.fused().double() - expected).norm() / expected.norm())

    def with_hidden(self, hidden: Tensor) -> Middle:
        return replace(self, hidden=hidden)


def random_middle(
    *,
    outer: int = 2,
    frames: int = 3,
    inner: int = 1,
    height: int = 5,
    width: int = 7,
    channels: int = 20,
    dtype: torch.dtype = torch.float32,
    activate: bool = True,
    eps: float = 1e-6,
    seed: int = 0,
    device: str = DEVICE,
) -> Middle:
    """Hidden values of unit size, and taps that keep the convolution's sums near one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device, dtype)

    return Middle(
        hidden=normal(outer * frames * inner, height, width, channels),
        bias=normal(channels) if activate else None,
        taps=normal(27, channels, scale=27**-0.5),
        taps_bias=normal(channels, scale=0.3),
        norm_weight=normal(channels),
        norm_bias=normal(channels),
        frames=frames,
        inner=inner,
        eps=eps,
    )
