"""The adapter's middle: fused kernel, plain PyTorch, torch.compile, parts of it; against a copy of the same bytes.

    python -m benchmarks.gpu.kernel_speed
    python -m benchmarks.gpu.kernel_speed --tune        # other blocks for the two widest shapes

Calls are timed in CUDA graphs, over buffers beyond the L2 cache ("cold", as against a copy of memory) and over one
buffer ("warm", as inside a network, where the product before has just written it). Nothing is timed that is not right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.early_gelu import launch_after_gelu
from benchmarks.gpu.kernel_cases import Case, Sizes
from benchmarks.gpu.place import dry, half, on_gpu, set_up
from benchmarks.gpu.project import KernelBlock, depth_adapter_middle, launch
from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import free, per_call_us, relative

ALLOWED_ERROR = 2e-3
MOST_BUFFERS = 64


class Shape(NamedTuple):
    """A shape of the published networks, and whether torch.compile, which is slow to start, is timed on it."""

    name: str
    sizes: Sizes
    compiled: bool = False


SHAPES = (
    Shape("ViT-B 1024 windowed", Sizes(25, 4, 1, 14, 14, 192), compiled=True),
    Shape("ViT-H 512 windowed", Sizes(9, 9, 1, 14, 14, 320), compiled=True),
    Shape("ViT-B 1024 global", Sizes(1, 4, 1, 64, 64, 192)),
    Shape("ViT-H 512 global", Sizes(1, 9, 1, 32, 32, 320)),
    Shape("ViT-H 256 windowed", Sizes(4, 26, 1, 14, 14, 320)),
    Shape("ViT-H 256 global", Sizes(1, 26, 1, 16, 16, 320)),
    Shape("decoder, 216 prompts", Sizes(1, 9, 24, 32, 32, 64)),
)
DRY_SHAPES = (Shape("dry run", Sizes(1, 2, 1, 3, 4, 20)),)
BLOCKS = ((2, 4), (4, 4), (4, 8), (8, 4), (8, 8), (8, 16), (16, 4), (16, 8), (16, 16), (32, 8))
DRY_BLOCKS = ((4, 4),)


def main() -> None:
    """Time every form of the middle, or other blocks of both kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="try other blocks for the two widest shapes")
    arguments = parser.parse_args()
    set_up()
    results = Results("kernel")
    shapes = DRY_SHAPES if dry() else SHAPES
    if arguments.tune:
        for shape in shapes[:2]:
            for block in DRY_BLOCKS if dry() else BLOCKS:
                results.attempt("tuned", f"{shape.name} {block}", partial(tuned, shape.sizes, block))
    else:
        for shape in shapes:
            measure(results, shape)
            free()
    results.finish()


@dataclass(frozen=True)
class Timer:
    """One shape's inputs and what a copy of them costs."""

    case: Case
    expected: Tensor
    buffers: list[Tensor]
    copy_us: float

    @classmethod
    def of(cls, sizes: Sizes) -> Timer:
        """Make the inputs, and buffers that exceed the cache four times."""
        case = Case.random(sizes, half())
        buffers = [case.hidden]
        if on_gpu():
            beyond = 4 * torch.cuda.get_device_properties(0).L2_cache_size
            more = min(MOST_BUFFERS - 1, beyond // case.hidden.nbytes + 1)
            buffers += [torch.randn_like(case.hidden) for _ in range(more)]
        return cls(case, case.expected(), buffers, per_call_us(torch.clone, buffers))

    def both(self, run: Callable[[Tensor], object]) -> dict[str, float]:
        """Microseconds over cold buffers and over a warm one."""
        return {"cold": per_call_us(run, self.buffers), "warm": per_call_us(run, self.buffers[:1])}

    def judged(self, run: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The error of a form of the middle, then its times.

        Raises:
            ValueError: the form is wrong; it is not timed.
        """
        error = relative(run(self.case.hidden), self.expected)
        if not error <= ALLOWED_ERROR:
            raise ValueError(f"off by {error} of the norm, allowed {ALLOWED_ERROR}: not timed")
        return {"error": error, **self.part(run)}

    def part(self, run: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The times of something that is not the whole middle."""
        us = self.both(run)
        return {"us": us, "share_of_copy": round(self.copy_us / us["cold"], 3)}


def measure(results: Results, shape: Shape) -> None:
    """Every form of the middle at one shape, and a copy of the same bytes."""
    timer = Timer.of(shape.sizes)
    moved = 2 * timer.case.hidden.nbytes
    copy = {"us": timer.both(torch.clone), "tb_s": round(moved / timer.copy_us / 1e6, 3)}
    results.put("speed", {"bytes": moved, "buffers": len(timer.buffers), **copy}, name=f"{shape.name} | copy")
    for name, form in forms_of(timer.case, compiled=shape.compiled and on_gpu()).items():
        results.attempt("speed", f"{shape.name} | {name}", partial(timer.judged, form))
    for name, form in parts_of(timer.case).items():
        results.attempt("speed", f"{shape.name} | {name}", partial(timer.part, form))


def forms_of(case: Case, *, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of `hidden`, all of them the whole middle."""
    assert case.bias is not None  # `Timer` makes cases with one
    bias, parts = case.bias, parts_of(case)

    def after_gelu(name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: parts[name](functional.gelu(x + bias))

    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "eager": case.plain,
        "fused": lambda x: depth_adapter_middle(x, bias, *case.others, **case.along),
        "GELU, then fused": after_gelu("fused without GELU"),
        "GELU, then early-GELU kernel": after_gelu("early-GELU kernel alone"),
    }
    return forms | ({"compiled": torch.compile(case.plain, dynamic=False)} if compiled else {})


def parts_of(case: Case) -> dict[str, Callable[[Tensor], Tensor]]:
    """The two kernels alone, without the bias and the first GELU."""
    return {
        "fused without GELU": lambda x: depth_adapter_middle(x, None, *case.others, **case.along),
        "early-GELU kernel alone": lambda x: launch_after_gelu(x, *case.others, **case.along, block=None),
    }


def tuned(sizes: Sizes, block: tuple[int, int]) -> dict[str, Any]:
    """Both kernels with other blocks than their tables say."""
    case = Case.random(sizes, half())
    with mock.patch.object(launch, "block_for", lambda *_: KernelBlock(*block)):
        first = per_call_us(lambda x: depth_adapter_middle(x, case.bias, *case.others, **case.along), [case.hidden])
    second = per_call_us(lambda x: launch_after_gelu(x, *case.others, **case.along, block=block), [case.hidden])
    return {"fused_warm_us": first, "early_gelu_alone_warm_us": second}


if __name__ == "__main__":
    main()
