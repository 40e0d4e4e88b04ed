"""The middle of a depth-convolution adapter as one Triton kernel.

One program owns a run of pixels, all channels, and walks along the depth. Each frame is read at its nine in-plane
shifts and added to three running sums: the outputs of the frame before, of this one and of the one after. So an element
comes from memory once (the shifts hit the cache), no transposed copy exists, and nothing but the result is written. All
arithmetic and the norm's statistics are float32. Offsets are 32 bits wide within a row and 64 between rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _normalised(sums, valid, scale, shift, eps, CHANNELS: tl.constexpr):
    """Layer norm over the channels of `[pixels, channels]`; padded channels stay out of the statistics."""
    mean = tl.sum(sums, axis=1) / CHANNELS
    centred = tl.where(valid[None, :], sums - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / CHANNELS
    return centred * tl.rsqrt(variance + eps)[:, None] * scale[None, :] + shift[None, :]


@triton.jit(do_not_specialize=["frames", "inner", "height", "width", "eps_bits"])
def depth_adapter_middle(
    hidden,
    bias,
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
    ACTIVATE: tl.constexpr,
):
    """See `reference.depth_adapter_middle`; `ACTIVATE` adds `bias` and applies the first GELU."""
    eps = eps_bits.to(tl.float32, bitcast=True)
    image = height * width
    blocks = tl.cdiv(image, BLOCK_PIXELS)
    group = tl.program_id(0) // blocks
    pixel = (tl.program_id(0) % blocks) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    y = pixel // width
    x = pixel % width
    channel = tl.arange(0, BLOCK_CHANNELS)
    valid = channel < CHANNELS
    first = (group // inner).to(tl.int64) * frames * inner + group % inner
    start = first * image * CHANNELS
    step = inner.to(tl.int64) * image * CHANNELS
    here_at = pixel[:, None] * CHANNELS + channel[None, :]
    stored = (pixel < image)[:, None] & valid[None, :]
    scale = tl.load(norm_weight + channel, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + channel, mask=valid, other=0.0).to(tl.float32)
    offset = tl.load(taps_bias + channel, mask=valid, other=0.0).to(tl.float32)
    if ACTIVATE:
        added = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    empty = tl.zeros([BLOCK_PIXELS, BLOCK_CHANNELS], dtype=tl.float32)
    before = empty
    here = empty + offset[None, :]
    centre_before = empty
    for frame in range(frames):
        source = hidden + start + frame * step
        after = empty + offset[None, :]
        centre = empty
        for tap in range(9):  # a real loop: unrolled, the compiler would hold 27 taps in registers and spill
            row = y + (tap // 3 - 1)
            column = x + (tap % 3 - 1)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = here_at + ((tap // 3 - 1) * width + (tap % 3 - 1)) * CHANNELS
            value = tl.load(source + at, mask=inside[:, None] & valid[None, :], other=0.0).to(tl.float32)
            if ACTIVATE:
                # The convolution's padding is zero after the activation, so it is zeroed here, not before.
                value = tl.where(inside[:, None], _gelu(value + added[None, :]), 0.0)
            centre = tl.where(tap == 4, value, centre)
            weight = taps + tap * CHANNELS + channel
            before += value * tl.load(weight + 18 * CHANNELS, mask=valid, other=0.0).to(tl.float32)[None, :]
            here += value * tl.load(weight + 9 * CHANNELS, mask=valid, other=0.0).to(tl.float32)[None, :]
            after += value * tl.load(weight, mask=valid, other=0.0).to(tl.float32)[None, :]
        if frame > 0:
            mixed = _gelu(_normalised(before, valid, scale, shift, eps, CHANNELS))
            result = (centre_before + mixed).to(out.dtype.element_ty)
            tl.store(out + start + (frame - 1) * step + here_at, result, mask=stored)
        before = here
        here = after
        centre_before = centre
    mixed = _gelu(_normalised(before, valid, scale, shift, eps, CHANNELS))
    result = (centre_before + mixed).to(out.dtype.element_ty)
    tl.store(out + start + (frames - 1) * step + here_at, result, mask=stored)
