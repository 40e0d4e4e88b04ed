"""`masksam::depth_adapter_middle`, the kernel as a torch operator: eager, `torch.compile` and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from masksam_kernels.depth_adapter.launch import launch_middle


@torch.library.custom_op("masksam::depth_adapter_middle", mutates_args=())
def depth_adapter_middle(
    hidden: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    frames: int,
    inner: int,
    eps: float,
) -> Tensor:
    """See `reference.depth_adapter_middle`. Inference only: it has no gradient.

    Raises:
        KernelError: types, shapes, strides or a device that the kernel does not take.
    """
    out = torch.empty_like(hidden)
    launch_middle(out, hidden, bias, taps, taps_bias, norm_weight, norm_bias, frames=frames, inner=inner, eps=eps)
    return out


@depth_adapter_middle.register_fake
def _shape_of_middle(
    hidden: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    frames: int,
    inner: int,
    eps: float,
) -> Tensor:
    return torch.empty_like(hidden)
