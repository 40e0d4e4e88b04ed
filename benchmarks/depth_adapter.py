"""The fused adapter against eager torch and torch.compile on an NVIDIA GPU: correctness first, then speed.

    python benchmarks/depth_adapter.py -o benchmarks/results/depth_adapter.json
    python benchmarks/depth_adapter.py --tune           # prints a block table for this GPU, from measurements

Without a GPU it says "not measured" and ends with exit code 4. The middle of the adapter (bias, GELU, depthwise
convolution, norm, GELU, add) and the whole adapter are timed with CUDA events over buffers that together exceed the L2
cache; a copy of the same bytes is timed in the same run, and bandwidths are given as a share of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from masksam_deploy.bench.machine import provenance
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model.depth_adapter import AdapterKind, DepthConvAdapter
from masksam_export.families.masksam.model.image_encoder import Attention, ImageEncoder
from masksam_export.families.masksam.official import ACDC, AMOS
from masksam_kernels.depth_adapter import launch, reference
from masksam_kernels.depth_adapter.blocks import Block, padded_channels
from masksam_kernels.depth_adapter.op import depth_adapter_middle

NOT_MEASURED = 4
REPEATS = 50
MIDDLE_TOLERANCE = 2e-3  # fp16, norm of the error over norm of the result
ENCODER_TOLERANCE = 2e-2  # two fp16 networks of 32 blocks whose sums round in different places
BUFFER_BYTES = 512 * 2**20  # ten times the L2 of the largest GPU


@dataclass(frozen=True)
class Shape:
    """One adapter: `[rows, side, side, hidden]` inside, `dim` outside, depth neighbours `inner` rows apart."""

    name: str
    rows: int
    frames: int
    inner: int
    side: int
    hidden: int
    dim: int


SHAPES = (
    Shape("ViT-B 1024 windowed", 4 * 25, 4, 1, 14, 192, 768),
    Shape("ViT-B 1024 global", 4, 4, 1, 64, 192, 768),
    Shape("ViT-H 512 windowed", 9 * 9, 9, 1, 14, 320, 1280),
    Shape("ViT-H 512 global", 9, 9, 1, 32, 320, 1280),
    Shape("ViT-H 256 windowed", 26 * 4, 26, 1, 14, 320, 1280),
    Shape("ViT-H 256 global", 26, 26, 1, 16, 320, 1280),
    Shape("decoder, 216 prompts", 9 * 24, 9, 24, 32, 64, 256),
)
ENCODERS = {"ViT-B, 4 frames at 1024 (ACDC)": ACDC, "ViT-H, 9 frames at 512 (AMOS)": AMOS}


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: no NVIDIA GPU on this machine")
        sys.exit(NOT_MEASURED)
    if arguments.tune:
        tune()
        return
    rows = [measure(shape) for shape in SHAPES]
    encoders = [measure_encoder(name, config) for name, config in ENCODERS.items()]
    result = {
        "dtype": "float16",
        "repeats": REPEATS,
        "shapes": rows,
        "encoders": encoders,
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        **provenance("torch", "triton"),
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {arguments.output}")


def measure(shape: Shape) -> dict[str, Any]:
    """Medians in microseconds, bandwidths, ratios."""
    adapter = random_adapter(shape)
    hiddens = buffers(shape.rows, shape.side, shape.hidden)
    inputs = buffers(shape.rows, shape.side, shape.dim)
    error = middle_error(adapter, hiddens[0], shape)
    if not error <= MIDDLE_TOLERANCE:
        raise SystemExit(f"{shape.name}: off by {error}, allowed {MIDDLE_TOLERANCE}: nothing was timed")
    eager_middle = middle_of(adapter, shape)
    middles: dict[str, Callable[[Tensor], Tensor]] = {
        "copy": torch.clone,
        "eager": eager_middle,
        "compiled": torch.compile(eager_middle, dynamic=False),
        "fused": fused_middle_of(adapter, shape),
    }
    times = {f"middle_{name}": median_us(run, hiddens) for name, run in middles.items()}
    kinds: tuple[AdapterKind, ...] = ("eager", "fused")
    for kind in kinds:
        adapter.kind = kind
        times[f"whole_{kind}"] = median_us(whole_of(adapter, shape), inputs)
    moved = 2 * hiddens[0].nbytes
    rates = {name: moved / us / 1e6 for name, us in times.items() if name.startswith("middle")}  # TB/s
    row = {
        "shape": vars(shape),
        "error": error,
        "median_us": {name: round(us, 2) for name, us in times.items()},
        "middle_share_of_copy_bandwidth": round(rates["middle_fused"] / rates["middle_copy"], 3),
        "copy_tb_s": round(rates["middle_copy"], 3),
        "middle_times_faster_than_eager": round(times["middle_eager"] / times["middle_fused"], 2),
        "middle_times_faster_than_compiled": round(times["middle_compiled"] / times["middle_fused"], 2),
        "whole_times_faster_than_eager": round(times["whole_eager"] / times["whole_fused"], 2),
    }
    print(json.dumps(row), flush=True)
    return row


def measure_encoder(name: str, config: ModelConfig) -> dict[str, Any]:
    """A whole image encoder, random weights, half precision, one window: eager and fused adapters, same attention."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        encoder = ImageEncoder(config).half().eval().requires_grad_(False)
        side = 16 * config.grid
        images = [torch.randn(config.frames, 3, side, side).half() for _ in range(4)]
    adapters = [module for module in encoder.modules() if isinstance(module, DepthConvAdapter)]
    for module in encoder.modules():
        if isinstance(module, Attention):
            module.freeze_positions()  # gathering them waits for the GPU
    kinds: tuple[AdapterKind, ...] = ("eager", "fused")
    outputs, times = {}, {}
    for kind in kinds:
        for adapter in adapters:
            adapter.kind = kind
        outputs[kind] = encoder(images[0])[1]
        times[kind] = median_us(lambda image: encoder(image)[1], images)
    error = float((outputs["fused"] - outputs["eager"]).float().norm() / outputs["eager"].float().norm())
    if not error <= ENCODER_TOLERANCE:
        raise SystemExit(f"{name}: fused and eager differ by {error}, allowed {ENCODER_TOLERANCE}")
    row = {
        "name": name,
        "fused_to_eager_difference": error,
        "median_us": {kind: round(us, 1) for kind, us in times.items()},
        "times_faster_than_eager": round(times["eager"] / times["fused"], 3),
    }
    print(json.dumps(row), flush=True)
    return row


def tune() -> None:
    """The fastest block of each width on this GPU, over the shapes that have it."""
    table = {}
    for width in sorted({padded_channels(shape.hidden) for shape in SHAPES}):
        shapes = [shape for shape in SHAPES if padded_channels(shape.hidden) == width]
        totals = {}
        for pixels, warps in itertools.product((2, 4, 8, 16, 32), (2, 4, 8, 16)):
            with mock.patch.object(launch, "block_for", return_value=Block(pixels, warps)):
                totals[pixels, warps] = sum(
                    median_us(fused_middle_of(random_adapter(s), s), buffers(s.rows, s.side, s.hidden)) for s in shapes
                )
        best = min(totals, key=totals.__getitem__)
        table[width] = Block(*best)
        print(f"# {width}: " + str({sizes: round(us, 1) for sizes, us in totals.items()}) + " us")
    major, minor = torch.cuda.get_device_capability()
    print(f"{10 * major + minor}: {table},")


def random_adapter(shape: Shape) -> DepthConvAdapter:
    """Half precision, on the GPU, with weights as after training."""
    torch.manual_seed(0)
    adapter = DepthConvAdapter(shape.dim, shape.hidden, frames=shape.frames, skip=True)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.1)
    return adapter.to("cuda", torch.float16).eval().requires_grad_(False)


def buffers(rows: int, side: int, channels: int) -> list[Tensor]:
    """Enough tensors to exceed the L2 cache when used in turns."""
    first = torch.randn(rows, side, side, channels, device="cuda", dtype=torch.float16)
    return [first, *(torch.randn_like(first) for _ in range(BUFFER_BYTES // first.nbytes))]


def weights_of(adapter: DepthConvAdapter) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the middle takes them."""
    conv, norm = adapter.T_DWconv, adapter.norm
    assert conv.bias is not None  # every adapter has one
    return adapter.D_fc1.bias, reference.taps_from_conv(conv.weight), conv.bias, norm.weight, norm.bias


def middle_of(adapter: DepthConvAdapter, shape: Shape) -> Callable[[Tensor], Tensor]:
    """As eager torch does it: the first Linear's bias and what follows, up to the second Linear."""
    weights, eps = weights_of(adapter), adapter.norm.eps

    def run(hidden: Tensor) -> Tensor:
        return reference.depth_adapter_middle(hidden, *weights, frames=shape.frames, inner=shape.inner, eps=eps)

    return run


def fused_middle_of(adapter: DepthConvAdapter, shape: Shape) -> Callable[[Tensor], Tensor]:
    """The kernel."""
    weights, eps = weights_of(adapter), adapter.norm.eps

    def run(hidden: Tensor) -> Tensor:
        out: Tensor = depth_adapter_middle(hidden, *weights, shape.frames, shape.inner, eps)
        return out

    return run


def whole_of(adapter: DepthConvAdapter, shape: Shape) -> Callable[[Tensor], Tensor]:
    """Both Linears and the skip."""
    if shape.inner == 1:
        return adapter
    return lambda x: adapter.forward_prompts(x.flatten(1, 2), shape.inner, shape.side)


def middle_error(adapter: DepthConvAdapter, hidden: Tensor, shape: Shape) -> float:
    """Of the kernel, against float64 from the same fp16 numbers."""
    found = fused_middle_of(adapter, shape)(hidden)
    expected = reference.depth_adapter_middle(
        *(tensor.double() for tensor in (hidden, *weights_of(adapter))),
        frames=shape.frames,
        inner=shape.inner,
        eps=adapter.norm.eps,
    )
    return float((found.double() - expected).norm() / expected.norm())


def median_us(run: Callable[[Tensor], Tensor], tensors: list[Tensor]) -> float:
    """Median over calls, each on the next buffer, between CUDA events."""
    for tensor in tensors[:3]:
        run(tensor)
    torch.cuda.synchronize()
    times = []
    for index in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # A spin keeps the GPU behind the CPU, so that what is timed is the kernels and not their launch.
        torch.cuda._sleep(1_000_000)
        start.record()
        run(tensors[index % len(tensors)])
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return float(statistics.median(times))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
