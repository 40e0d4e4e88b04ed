"""The adapters that give a 2D network depth: a depthwise 3D convolution, or an MLP along the frames."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from masksam_export.families.masksam.model.blocks import ChannelLayerNorm
from masksam_kernels.depth_adapter.reference import taps_from_conv

AdapterKind: TypeAlias = Literal["eager", "fused", "node"]


class DepthConvAdapter(nn.Module):
    """Linear -> GELU -> depthwise Conv3d 3x3x3 -> channel layer norm -> GELU -> add -> Linear.

    The depth axis is formed from `frames` consecutive rows of the input. In the windowed encoder blocks these
    rows are windows, not frames: that is how the official weights were trained.

    With `kind = "fused"` everything between the two Linears is one Triton kernel (`masksam_kernels`; inference only),
    with "node" one ONNX node (`passes.adapter_nodes`; for tracing only).
    """

    kind: AdapterKind = "eager"

    def __init__(self, dim: int, hidden: int, *, frames: int, skip: bool) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(dim, hidden)
        self.D_fc2 = nn.Linear(hidden, dim)
        self.T_DWconv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = ChannelLayerNorm(hidden)
        self.frames = frames
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """`[N, h, w, dim]` -> same shape; N is a multiple of `frames`."""
        y = self.D_fc2(self.middle(functional.linear(x, self.D_fc1.weight), self.D_fc1.bias))
        return x + y if self.skip else y

    def forward_prompts(self, x: Tensor, queries: int, grid: int) -> Tensor:
        """Rows `(b t q)`: `[B*T*Q, grid*grid, dim]` -> same shape, depth is the frame."""
        channels = self.T_DWconv.in_channels
        product = functional.linear(x, self.D_fc1.weight).reshape(-1, grid, grid, channels)
        middle = self.middle(product, self.D_fc1.bias, inner=queries)
        y = self.D_fc2(middle.reshape(-1, grid * grid, channels))
        return x + y if self.skip else y

    def middle(self, product: Tensor, bias: Tensor, inner: int = 1) -> Tensor:
        """The first Linear's product and its bias to what the second one takes, `[N, h, w, C]`.

        Depth neighbours are `inner` rows apart.
        """
        conv, norm = self.T_DWconv, self.norm
        assert conv.bias is not None  # for the type checker: this class made it
        if self.kind == "eager":
            return self._eager_middle(product + bias.to(product.dtype), inner)
        taken = (bias, taps_from_conv(conv.weight), conv.bias, norm.weight, norm.bias)
        weights = tuple(weight.to(product.dtype) for weight in taken)  # under autocast the product alone is narrow
        if self.kind == "node":
            return adapter_node((product, *weights), frames=self.frames, inner=inner, eps=norm.eps)
        from masksam_kernels.depth_adapter.op import depth_adapter_middle

        return depth_adapter_middle(product.contiguous(), *weights, self.frames, inner, norm.eps)

    def _eager_middle(self, hidden: Tensor, inner: int) -> Tensor:
        rows, height, width, channels = hidden.shape
        hidden = functional.gelu(hidden)
        volumes = hidden.reshape(-1, self.frames, inner, height, width, channels).permute(0, 2, 5, 1, 3, 4)
        mixed = self.T_DWconv(volumes.flatten(0, 1)).unflatten(0, (-1, inner)).permute(0, 3, 1, 4, 5, 2)
        return hidden + functional.gelu(self.norm.channel_last(mixed)).reshape(rows, height, width, channels)


def adapter_node(tensors: tuple[Tensor, ...], *, frames: int, inner: int, eps: float) -> Tensor:
    """The node that `passes.adapter_nodes` gives a meaning: the first tensor, `[N, h, w, C]`, to the same shape."""
    if not torch.compiler.is_exporting():
        raise RuntimeError("an adapter of kind 'node' can be traced, not run")
    hidden = tensors[0]
    _, height, width, channels = hidden.shape
    attributes: dict[str, Any] = {
        "frames": frames,
        "inner": inner,
        "height": int(height),
        "width": int(width),
        "channels": int(channels),
        "epsilon": eps,
        # TensorRT looks for a plugin of this name before it takes the node's body.
        "plugin_namespace": "masksam",
        "plugin_version": "1",
    }
    return torch.onnx.ops.symbolic(
        "masksam::DepthConvAdapter3d", tensors, attributes, dtype=hidden.dtype, shape=hidden.shape, version=1
    )


class DepthMlpAdapter(nn.Module):
    """An MLP along the frames, independently for each query, token and channel of the decoder's tokens."""

    def __init__(self, dim: int, hidden: int, *, frames: int, temporal_hidden: int, queries: int, skip: bool) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(dim, hidden)
        self.D_fc2 = nn.Linear(hidden, dim)
        self.T_fc1 = nn.Linear(frames, temporal_hidden)
        self.T_fc2 = nn.Linear(temporal_hidden, frames)
        self.frames = frames
        self.queries = queries
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """`[B*T*Q, n, dim]` -> same shape."""
        tokens, channels = int(x.shape[1]), self.D_fc1.out_features
        hidden = functional.gelu(self.D_fc1(x))
        along_time = hidden.reshape(-1, self.frames, self.queries, tokens, channels).permute(0, 2, 3, 4, 1)
        mixed = self.T_fc2(functional.gelu(self.T_fc1(along_time)))
        mixed = mixed.permute(0, 4, 1, 2, 3).reshape(-1, tokens, channels)
        y = self.D_fc2(hidden + mixed)
        return x + y if self.skip else y
