"""A kernel pack for tests of what carries it: whole and with true hashes, but its code is no code."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from masksam_kernels.pack import OPERATION, KernelPack, PackedKernel, sha256, write_pack


def make_pack(
    folder: Path,
    widths: Collection[int],
    architectures: Collection[int] = (87,),
    *,
    leave_out: Collection[tuple[int, int]] = (),
    activate: bool = True,
) -> KernelPack:
    """Write a pack with a kernel for each architecture and width but those left out."""
    wanted = {(architecture, width) for architecture in architectures for width in widths} - set(leave_out)
    kernels = (kernel(architecture, width, activate) for architecture, width in sorted(wanted))
    return write_pack(folder, kernels, compiler="none 1.0")


def kernel(architecture: int, width: int, activate: bool) -> tuple[PackedKernel, bytes, str]:
    name = f"k{architecture}_{width}"
    cubin, ptx = f"code of {name}".encode(), f"text of {name}"
    entry = PackedKernel(
        name=name,
        operation=OPERATION,
        architecture=architecture,
        dtype="fp16",
        channels=width,
        activate=activate,
        symbol="depth_adapter_middle",
        cubin=f"{name}.cubin",
        ptx=f"{name}.ptx",
        cubin_sha256=sha256(cubin),
        ptx_sha256=sha256(ptx.encode()),
        ptx_version="8.5",
        pixels=4,
        threads=256,
        shared_bytes=0,
        registers=128,
        stack_bytes=0,
    )
    return entry, cubin, ptx
