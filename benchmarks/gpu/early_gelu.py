"""An experiment: the adapter's middle with its first GELU applied beforehand, once per element instead of nine times.

Against the project's kernel, no GELU stands inside the ninefold loop; weights are loaded in the shape and layout of the
values, so that none passes through shared memory and no barrier is left; the taps of a row are unrolled. It is the same
function: `middle_after_gelu(gelu(hidden + bias), ...)` equals `reference.depth_adapter_middle(hidden, bias, ...)`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu.project import float32_bits, padded_channels

BLOCKS = {16: (64, 4), 32: (64, 4), 64: (32, 4), 128: (16, 4), 256: (8, 8), 512: (8, 16)}
"""Pixels and warps of a program by padded channels, chosen from the compiler's report, not from times."""


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _normed(values, valid, eps, CHANNELS: tl.constexpr):
    mean = tl.sum(values, axis=1) / CHANNELS
    centred = tl.where(valid, values - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / CHANNELS
    return centred * tl.rsqrt(variance + eps)[:, None]


@triton.jit(do_not_specialize=["frames", "inner", "height", "width", "eps_bits"])
def _kernel(
    active,
    taps,
    taps_bias,
    norm_weight,
    norm_bias,
    frames,
    inner,
    height,
    width,
    eps_bits,
    out,
    CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    eps = eps_bits.to(tl.float32, bitcast=True)
    image = height * width
    blocks = tl.cdiv(image, BLOCK_PIXELS)
    group = tl.program_id(0) // blocks
    pixel = (tl.program_id(0) % blocks) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[:, None]
    y = pixel // width
    x = pixel % width
    # The full shape on purpose: what is loaded with it has the layout of the values.
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :] + tl.zeros([BLOCK_PIXELS, 1], dtype=tl.int32)
    valid = channel < CHANNELS
    start = ((group // inner).to(tl.int64) * frames * inner + group % inner) * image * CHANNELS
    step = inner.to(tl.int64) * image * CHANNELS
    here_at = pixel * CHANNELS + channel
    stored = (pixel < image) & valid
    scale = tl.load(norm_weight + channel, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + channel, mask=valid, other=0.0).to(tl.float32)
    offset = tl.load(taps_bias + channel, mask=valid, other=0.0).to(tl.float32)
    zero = tl.zeros([BLOCK_PIXELS, BLOCK_CHANNELS], dtype=tl.float32)
    before = zero
    here = zero + offset
    centre_before = zero
    for frame in range(frames + 1):
        after = zero + offset
        centre = zero
        if frame < frames:
            for dy in range(3):
                row_inside = (y + (dy - 1) >= 0) & (y + (dy - 1) < height)
                for dx in tl.static_range(3):
                    inside = row_inside & (x + (dx - 1) >= 0) & (x + (dx - 1) < width) & valid
                    at = here_at + ((dy - 1) * width + (dx - 1)) * CHANNELS
                    value = tl.load(active + start + frame * step + at, mask=inside, other=0.0).to(tl.float32)
                    weight = taps + (3 * dy + dx) * CHANNELS + channel
                    before += value * tl.load(weight + 18 * CHANNELS, mask=valid, other=0.0).to(tl.float32)
                    here += value * tl.load(weight + 9 * CHANNELS, mask=valid, other=0.0).to(tl.float32)
                    after += value * tl.load(weight, mask=valid, other=0.0).to(tl.float32)
                    if dx == 1:
                        centre = tl.where(dy == 1, value, centre)
        if frame > 0:
            mixed = _gelu(_normed(before, valid, eps, CHANNELS) * scale + shift)
            result = (centre_before + mixed).to(out.dtype.element_ty)
            tl.store(out + start + (frame - 1) * step + here_at, result, mask=stored)
        before = here
        here = after
        centre_before = centre


@torch.library.custom_op("masksam_experiment::middle_after_gelu", mutates_args=())
def middle_after_gelu(
    active: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    frames: int,
    inner: int,
    eps: float,
) -> Tensor:
    """`[outer*frames*inner, h, w, C]`, contiguous, after the first GELU -> the same shape."""
    return launch_after_gelu(active, taps, taps_bias, norm_weight, norm_bias, frames, inner, eps, None)


@middle_after_gelu.register_fake
def _shape(active: Tensor, *_: object) -> Tensor:
    return torch.empty_like(active)


def launch_after_gelu(
    active: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    frames: int,
    inner: int,
    eps: float,
    block: tuple[int, int] | None,
) -> Tensor:
    """As `middle_after_gelu`, with pixels and warps of a program other than `BLOCKS` says if they are given."""
    out = torch.empty_like(active)
    rows, height, width, channels = active.shape
    padded = padded_channels(channels)
    pixels, warps = block or BLOCKS[padded]
    programs = rows // frames * -(-height * width // pixels)
    _kernel[(programs,)](
        active,
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
        BLOCK_CHANNELS=padded,
        BLOCK_PIXELS=pixels,
        num_warps=warps,
    )
    return out
