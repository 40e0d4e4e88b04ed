"""Loads a packed kernel through the CUDA driver and starts it: no Triton, no compiler, no torch.

Written for NVIDIA's `cuda-core` and **not yet run on a GPU**; its tests are marked `gpu`.
"""

from __future__ import annotations

import ctypes
from typing import Any

from masksam_kernels.arguments import SCRATCH, float32_bits
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import KernelPack

NEEDS = "pip install 'masksam-deploy[kernels-device]'"
INT32_MAX = 2**31 - 1


class LoadedMiddle:
    """`depth_adapter.reference.depth_adapter_middle` on the calling thread's current device, for one width and type.

    The context that is current is used and left as it is. Load before a stream is captured, not during.

    Args:
        pack: from `read_pack`; the code is checked against its hash once more.
        channels: of the hidden tensor.
        dtype: of all tensors: fp16, bf16 or fp32.
        activate: whether the kernel adds the bias and applies the first GELU.

    Raises:
        KernelError: the pack has no kernel for this device, or `cuda-core` is missing.
    """

    def __init__(self, pack: KernelPack, *, channels: int, dtype: str, activate: bool = True) -> None:
        try:
            from cuda.core import Device, ObjectCode
        except ImportError:
            raise KernelError(f"starting packed kernels needs cuda-core: {NEEDS}") from None
        capability = Device().compute_capability
        self.entry = pack.find(10 * capability.major + capability.minor, channels, dtype, activate=activate)
        self._kernel: Any = ObjectCode.from_cubin(pack.code(self.entry)).get_kernel(self.entry.symbol)

    def __call__(
        self,
        stream: Any,
        *,
        hidden: int,
        bias: int,
        taps: int,
        taps_bias: int,
        norm_weight: int,
        norm_bias: int,
        out: int,
        rows: int,
        frames: int,
        inner: int,
        height: int,
        width: int,
        eps: float = 1e-6,
    ) -> None:
        """Starts the kernel on a stream and returns at once; a stream under capture records it.

        Args:
            stream: a `cuda.core.Stream`, or anything with `__cuda_stream__`.
            hidden: device address of `[rows, height, width, channels]`, contiguous, aligned to 16 bytes, as are all.
            bias: of `[channels]`; not read without `activate`.
            taps: of `[27, channels]`.
            taps_bias: of `[channels]`.
            norm_weight: of `[channels]`.
            norm_bias: of `[channels]`.
            out: of a tensor like `hidden`, elsewhere.
            rows: a multiple of `frames * inner`.
            frames: length of the depth axis.
            inner: rows between depth neighbours.
            height: of an image.
            width: of an image.
            eps: of the layer norm.

        Raises:
            KernelError: an address is not aligned, or the sizes do not fit.
        """
        from cuda.core import LaunchConfig, launch

        addresses = (hidden, bias, taps, taps_bias, norm_weight, norm_bias, out)
        check_launch(addresses, rows, frames, inner, height, width, self.entry.channels)
        programs = self.entry.programs(rows, frames, height, width)
        if programs > INT32_MAX:
            raise KernelError(f"a launch may have 2^31 - 1 programs, {rows} rows of {height}x{width} need {programs}")
        config = LaunchConfig(
            grid=programs,
            block=self.entry.threads,
            shmem_size=self.entry.shared_bytes,
        )
        integers = map(ctypes.c_int32, (frames, inner, height, width, float32_bits(eps)))
        no_scratch = (0,) * len(SCRATCH)
        launch(stream, config, self._kernel, *addresses[:-1], *integers, out, *no_scratch)


def check_launch(
    addresses: tuple[int, ...], rows: int, frames: int, inner: int, height: int, width: int, channels: int
) -> None:
    """What the kernel takes for granted; the last address is the output's.

    Raises:
        KernelError: an address is null or not aligned to 16 bytes, the output is an input, or the sizes do not fit.
    """
    if any(address <= 0 or address % 16 for address in addresses):
        found = [hex(address) for address in addresses]
        raise KernelError(f"device addresses must be multiples of 16 above 0, found {found}")
    if addresses[-1] in addresses[:-1]:
        raise KernelError("out is an input: the kernel reads neighbours that it would have overwritten")
    check_sizes(rows, frames, inner, height, width, channels)


def check_sizes(rows: int, frames: int, inner: int, height: int, width: int, channels: int) -> None:
    """What the kernel takes for granted of a hidden tensor `[rows, height, width, channels]`.

    Raises:
        KernelError: rows do not divide into frames, or one row has too many elements.
    """
    if min(rows, frames, inner, height, width) < 1 or rows % (frames * inner):
        raise KernelError(f"{rows} rows of {height}x{width} do not divide into {frames} frames of {inner} rows")
    if height * width * channels > INT32_MAX:
        raise KernelError(f"one row may have 2^31 - 1 elements, found {height}x{width}x{channels}")
