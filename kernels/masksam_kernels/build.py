"""Compiles the kernels ahead of time, for GPUs that this machine need not have."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from masksam_kernels.arguments import INPUTS, INTEGERS, OUTPUT
from masksam_kernels.depth_adapter.blocks import Block, block_for, padded_channels
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import OPERATION, PackedKernel, sha256
from masksam_kernels.ptx import check_entry

Dtype: TypeAlias = Literal["fp16", "bf16", "fp32"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

# PTX ISA of each architecture: old enough for the target's driver (JetPack 6: 8.5), new enough to know it.
PTX_VERSIONS = {80: 85, 86: 85, 87: 85, 89: 85, 90: 85, 110: 90, 120: 87}
ARCHITECTURES = tuple(PTX_VERSIONS)
# Adapter widths of the published layouts: decoder, ViT-B, (ViT-L,) ViT-H.
CHANNELS = (64, 192, 256, 320)

POINTER_ALIGNMENT = 16  # bytes; lets the compiler load vectors


@dataclass(frozen=True)
class Variant:
    """One compiled form of the kernel.

    Attributes:
        architecture: 87 for sm_87.
        channels: of the adapter's hidden tensor.
        dtype: of all tensors; arithmetic is float32.
        activate: whether it adds the first Linear's bias and applies the first GELU.
    """

    architecture: int
    channels: int
    dtype: Dtype
    activate: bool = True

    @property
    def name(self) -> str:
        """Unique in a pack."""
        return f"middle_sm{self.architecture}_c{self.channels}_{self.dtype}" + ("" if self.activate else "_active")

    @property
    def block(self) -> Block:
        """How the kernel is cut into programs."""
        return block_for(self.architecture, self.channels)


@dataclass(frozen=True)
class Resources:
    """What one program takes of a multiprocessor, as the assembler reports it; `stack_bytes` above 0 means spills."""

    registers: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Compiled:
    """The machine code of a variant."""

    variant: Variant
    symbol: str
    ptx: str
    cubin: bytes
    resources: Resources
    dynamic_shared_bytes: int


def variants(
    architectures: tuple[int, ...] = ARCHITECTURES,
    channels: tuple[int, ...] = CHANNELS,
    dtypes: tuple[Dtype, ...] = ("fp16", "bf16"),
) -> Iterator[Variant]:
    """All variants of a pack."""
    for architecture in architectures:
        for width in channels:
            for dtype in dtypes:
                for activate in (True, False):
                    yield Variant(architecture, width, dtype, activate)


def compile_variant(variant: Variant) -> Compiled:
    """Machine code for a GPU that need not be here.

    Raises:
        KernelError: the compiler does not know the architecture, or runs as an interpreter.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.errors import TritonError

    from masksam_kernels.depth_adapter import fused

    if not isinstance(fused.depth_adapter_middle, triton.JITFunction):
        raise KernelError("kernels cannot be built while Triton interprets them: unset TRITON_INTERPRET")
    if variant.architecture not in PTX_VERSIONS:
        known = ", ".join(f"sm_{architecture}" for architecture in PTX_VERSIONS)
        raise KernelError(f"no kernels are built for sm_{variant.architecture}, only for {known}")
    constants = {
        "CHANNELS": variant.channels,
        "BLOCK_CHANNELS": padded_channels(variant.channels),
        "BLOCK_PIXELS": variant.block.pixels,
        "ACTIVATE": variant.activate,
    }
    signature = {
        **dict.fromkeys(INPUTS, f"*{variant.dtype}"),
        **dict.fromkeys(INTEGERS, "i32"),
        OUTPUT: f"*{variant.dtype}",
        **dict.fromkeys(constants, "constexpr"),
    }
    pointers = [index for index, name in enumerate(signature) if signature[name].startswith("*")]
    aligned = {(index,): [["tt.divisibility", POINTER_ALIGNMENT]] for index in pointers}
    source = ASTSource(fused.depth_adapter_middle, signature, constants, aligned)
    options = {"num_warps": variant.block.warps, "ptx_version": PTX_VERSIONS[variant.architecture]}
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # else the paths of this machine are in the code
        knobs.runtime.override_arch = None
        try:
            built = triton.compile(source, target=GPUTarget("cuda", variant.architecture, 32), options=options)
        except (RuntimeError, ValueError, TritonError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise KernelError(f"Triton {triton.__version__} cannot build {variant.name}: {reason}") from error
    check_entry(built.asm["ptx"], variant.name)
    return Compiled(
        variant=variant,
        symbol=built.metadata.name,
        ptx=built.asm["ptx"],
        cubin=built.asm["cubin"],
        resources=resources_of(built.asm["cubin"]),
        dynamic_shared_bytes=built.metadata.shared,
    )


def packed(compiled: Compiled) -> tuple[PackedKernel, bytes, str]:
    """The entry of a pack, with its machine code and PTX."""
    variant = compiled.variant
    version = PTX_VERSIONS[variant.architecture]
    entry = PackedKernel(
        name=variant.name,
        operation=OPERATION,
        architecture=variant.architecture,
        dtype=variant.dtype,
        channels=variant.channels,
        activate=variant.activate,
        symbol=compiled.symbol,
        cubin=f"{variant.name}.cubin",
        ptx=f"{variant.name}.ptx",
        cubin_sha256=sha256(compiled.cubin),
        ptx_sha256=sha256(compiled.ptx.encode()),
        ptx_version=f"{version // 10}.{version % 10}",
        pixels=variant.block.pixels,
        threads=32 * variant.block.warps,
        shared_bytes=compiled.dynamic_shared_bytes,
        registers=compiled.resources.registers,
        stack_bytes=compiled.resources.stack_bytes,
    )
    return entry, compiled.cubin, compiled.ptx


def resources_of(cubin: bytes) -> Resources:
    """Read with NVIDIA's `cuobjdump`, which comes with Triton.

    Raises:
        KernelError: it did not say.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [_cuobjdump(), "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    if not found:
        raise KernelError(f"cuobjdump did not report resources: {text.strip()[:200]!r}")
    registers, stack, shared, local = map(int, found.groups())
    return Resources(registers, stack + local, shared)


def _cuobjdump() -> str:
    import triton.backends.nvidia as backend

    return os.fspath(Path(backend.__file__).parent / "bin" / "cuobjdump")
