"""Random inputs of the adapter's middle, and its result in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from benchmarks.gpu.place import device
from benchmarks.gpu.project import launch_middle, reference

EPS = 1e-6
TAPS = 27


class Sizes(NamedTuple):
    """Of `hidden`, `[outer*frames*inner, height, width, channels]`; depth neighbours are `inner` rows apart."""

    outer: int
    frames: int
    inner: int
    height: int
    width: int
    channels: int


class Along(TypedDict):
    """Where the depth neighbours lie, and the norm's epsilon."""

    frames: int
    inner: int
    eps: float


@dataclass(frozen=True)
class Case:
    """Inputs of the middle.

    Attributes:
        hidden: see `Sizes`.
        bias: of the first Linear, `[C]`; None where `hidden` has gone through the first GELU already.
        others: taps `[27, C]`, their bias, the norm's weight and bias, `[C]` each.
        along: where the depth neighbours lie.
    """

    hidden: Tensor
    bias: Tensor | None
    others: tuple[Tensor, Tensor, Tensor, Tensor]
    along: Along

    @classmethod
    def random(cls, sizes: Sizes, dtype: torch.dtype, *, activate: bool = True) -> Case:
        """The same values on every machine; `activate`: whether there is a bias, and so a first GELU."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=generator)).to(device(), dtype)

        channels = sizes.channels
        hidden = normal(sizes.outer * sizes.frames * sizes.inner, sizes.height, sizes.width, channels)
        taps, taps_bias = normal(TAPS, channels, scale=TAPS**-0.5), normal(channels, scale=0.3)
        others = (taps, taps_bias, normal(channels), normal(channels))
        bias = normal(channels) if activate else None
        return cls(hidden, bias, others, {"frames": sizes.frames, "inner": sizes.inner, "eps": EPS})

    def fused(self, out: Tensor, hidden: Tensor | None = None) -> None:
        """Run the project's kernel on `hidden`, or on a tensor in its place, into `out`."""
        launch_middle(out, self.hidden if hidden is None else hidden, self.bias, *self.others, **self.along)

    def fused_poisoned(self) -> Tensor:
        """The kernel's result, in memory that was full of NaN before."""
        out = torch.full_like(self.hidden, float("nan"))
        self.fused(out)
        return out

    def plain(self, hidden: Tensor) -> Tensor:
        """The middle of `hidden` in plain PyTorch."""
        return reference.depth_adapter_middle(hidden, self.bias, *self.others, **self.along)

    def expected(self) -> Tensor:
        """The result in float64."""
        bias = None if self.bias is None else self.bias.double()
        taps, taps_bias, weight, norm_bias = (tensor.double() for tensor in self.others)
        hidden = self.hidden.double()
        return reference.depth_adapter_middle(hidden, bias, taps, taps_bias, weight, norm_bias, **self.along)
