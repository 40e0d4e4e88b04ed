"""All that the scripts of this folder take from the project's packages: if a module moves, this file alone changes."""

from __future__ import annotations

from typing import Any, NamedTuple

from masksam_deploy.bench.machine import provenance
from masksam_export.families.masksam import official
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.blocks import linear_matrix
from masksam_export.families.masksam.model.depth_adapter import AdapterKind, DepthConvAdapter
from masksam_export.families.masksam.model.image_encoder import (
    ADAPTER_SCALE,
    Attention,
    Block,
    merge_windows,
    windows_per_side,
)
from masksam_export.families.masksam.model.image_tokens import DecodedImage
from masksam_export.families.masksam.model.mask_decoder import Decoded, MaskDecoder
from masksam_export.families.masksam.model.prompt_encoder import EmbeddedMasks
from masksam_export.families.masksam.training.network import new_network
from masksam_kernels.arguments import float32_bits
from masksam_kernels.depth_adapter import launch, reference
from masksam_kernels.depth_adapter.blocks import Block as KernelBlock
from masksam_kernels.depth_adapter.blocks import padded_channels
from masksam_kernels.depth_adapter.launch import launch_middle
from masksam_kernels.depth_adapter.op import depth_adapter_middle
from masksam_kernels.depth_adapter.reference import taps_from_conv

__all__ = [
    "ADAPTER_SCALE",
    "MODULES",
    "TESTS",
    "AdapterKind",
    "Attention",
    "Block",
    "Decoded",
    "DecodedImage",
    "DepthConvAdapter",
    "EmbeddedMasks",
    "KernelBlock",
    "MaskDecoder",
    "MaskSAM",
    "ModelConfig",
    "Selection",
    "build_pack",
    "depth_adapter_middle",
    "float32_bits",
    "gpu_memory",
    "launch",
    "launch_middle",
    "linear_matrix",
    "loaded_middle",
    "merge_windows",
    "new_network",
    "official",
    "padded_channels",
    "provenance",
    "reference",
    "taps_from_conv",
    "windows_per_side",
]

MODULES = (
    "masksam_deploy",
    "masksam_deploy.cli",
    "masksam_deploy.runtimes.tensorrt.chain",
    "masksam_deploy.scan_path.place_gpu",
    "masksam_export.onnx_export",
    "masksam_export.families.masksam.model",
    "masksam_kernels.depth_adapter.op",
    "masksam_kernels.device",
)
"""What a machine with a GPU must be able to import."""


class Selection(NamedTuple):
    """Some of the project's tests.

    Attributes:
        files: where they are.
        gpu_alone: whether only tests that are marked `gpu` are chosen.
        words: what `pytest -k` chooses by.
    """

    files: tuple[str, ...]
    gpu_alone: bool = True
    words: str = ""


TESTS = {
    # Tests that need neither TensorRT nor an ONNX Runtime for CUDA.
    "gpu": Selection(
        ("tests/kernels", "tests/base/test_gpus.py", "tests/scan_path/on_gpu", "tests/export/test_baseline.py")
    ),
    # Tests that run wherever Triton does: in its interpreter, or on a GPU.
    "kernels": Selection(("tests/kernels/test_middle.py", "tests/kernels/test_fused_network.py"), gpu_alone=False),
    # Memory, streams and graphs, with a copy in the place of TensorRT's engines.
    "machinery": Selection(
        ("tests/runtimes/test_tensorrt_on_gpu.py",),
        words="echo or goes_up or where_they_lie or graph_that or cannot_be_captured",
    ),
}


def gpu_memory() -> Any:
    """The product's own view of a GPU's memory; it needs cuda-core."""
    from masksam_deploy.runtimes.cuda.buffers import Gpu

    return Gpu()


def build_pack(folder: Any, architecture: int, channels: int) -> int:
    """Compile the middle for one architecture and width in float16 into a pack; returns the registers of a thread."""
    from masksam_kernels.build import compile_variant, packed, variants
    from masksam_kernels.pack import write_pack

    built = [compile_variant(variant) for variant in variants((architecture,), (channels,), ("fp16",))]
    write_pack(folder, map(packed, built), compiler="triton on the device")
    return int(built[0].resources.registers)


def loaded_middle(folder: Any, channels: int) -> Any:
    """The kernel of a pack, loaded by cuda-core without Triton."""
    from masksam_kernels.device import LoadedMiddle
    from masksam_kernels.pack import read_pack

    return LoadedMiddle(read_pack(folder), channels=channels, dtype="fp16")
