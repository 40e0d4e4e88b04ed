"""Checks arguments and starts the kernel on the current stream.

Nothing is allocated and nothing waits, so CUDA graphs can hold it; but the first call for a type, width and alignment
compiles, so that one comes before the capture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from masksam_kernels.arguments import float32_bits
from masksam_kernels.depth_adapter import fused
from masksam_kernels.depth_adapter.blocks import block_for, padded_channels
from masksam_kernels.errors import KernelError

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_IMAGE_ELEMENTS = 2**31 - 1


def launch_middle(
    out: Tensor,
    hidden: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    taps_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    frames: int,
    inner: int = 1,
    eps: float = 1e-6,
) -> None:
    """Writes `reference.depth_adapter_middle` to `out`, which may not overlap `hidden`.

    On CPU tensors it runs in Triton's interpreter, if that was switched on (`TRITON_INTERPRET=1`) before the import.

    Raises:
        KernelError: types, shapes, strides or a device that the kernel does not take.
    """
    weights = {"taps": taps, "taps_bias": taps_bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
    if bias is not None:
        weights["bias"] = bias
    _check_hidden(hidden, frames, inner)
    _check_like(hidden, {"out": (out, tuple(hidden.shape))})
    channels = hidden.shape[-1]
    _check_like(hidden, {name: (w, (27, channels) if name == "taps" else (channels,)) for name, w in weights.items()})
    if out.data_ptr() == hidden.data_ptr() and hidden.numel():
        raise KernelError("out is hidden: the kernel reads neighbours that it would have overwritten")
    rows, height, width, _ = hidden.shape
    if not hidden.numel():
        return
    block = block_for(_architecture(hidden), channels)
    programs = rows // frames * -(-height * width // block.pixels)
    with _device_of(hidden):
        fused.depth_adapter_middle[(programs,)](
            hidden,
            taps_bias if bias is None else bias,  # not read without ACTIVATE
            taps,
            taps_bias,
            norm_weight,
            norm_bias,
            frames,
            inner,
            height,
            width,
            float32_bits(eps),
            out,
            CHANNELS=channels,
            BLOCK_CHANNELS=padded_channels(channels),
            BLOCK_PIXELS=block.pixels,
            ACTIVATE=bias is not None,
            num_warps=block.warps,
        )


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on the CPU."""
    return isinstance(fused.depth_adapter_middle, InterpretedFunction)


def _check_hidden(hidden: Tensor, frames: int, inner: int) -> None:
    if hidden.ndim != 4:
        raise KernelError(f"hidden must be [rows, h, w, channels], found {list(hidden.shape)}")
    if hidden.dtype not in DTYPES:
        raise KernelError(f"hidden must be float16, bfloat16 or float32, found {hidden.dtype}")
    if not hidden.is_contiguous():
        raise KernelError(f"hidden must be contiguous, found strides {list(hidden.stride())}: call .contiguous() first")
    if frames < 1 or inner < 1 or hidden.shape[0] % (frames * inner):
        raise KernelError(f"{hidden.shape[0]} rows do not divide into {frames} frames of {inner} rows")
    if hidden.shape[1:].numel() > MAX_IMAGE_ELEMENTS:
        raise KernelError(f"one row of hidden may have 2^31 - 1 elements, found {list(hidden.shape[1:])}")
    if hidden.device.type != "cuda" and not (hidden.device.type == "cpu" and interpreted()):
        raise KernelError(
            f"the fused kernel runs on an NVIDIA GPU, found a tensor on '{hidden.device}': move the network there, or "
            f"use the reference"
        )


def _check_like(hidden: Tensor, tensors: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    for name, (tensor, shape) in tensors.items():
        if tuple(tensor.shape) != shape:
            raise KernelError(f"{name} must have shape {list(shape)}, found {list(tensor.shape)}")
        if tensor.dtype != hidden.dtype or tensor.device != hidden.device:
            raise KernelError(
                f"{name} must be {hidden.dtype} on {hidden.device} like hidden, found {tensor.dtype} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise KernelError(f"{name} must be contiguous, found strides {list(tensor.stride())}")


def _architecture(hidden: Tensor) -> int | None:
    if hidden.device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(hidden.device)
    return major * 10 + minor


def _device_of(hidden: Tensor) -> torch.cuda.device:
    return torch.cuda.device(hidden.device if hidden.device.type == "cuda" else -1)
