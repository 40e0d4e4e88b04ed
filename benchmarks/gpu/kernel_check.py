"""The fused kernel on this GPU against float64: many shapes and types, poisoned outputs, offsets beyond 2^31.

    python -m benchmarks.gpu.kernel_check
    compute-sanitizer --tool memcheck python -m benchmarks.gpu.kernel_check --one
    ncu -k regex:middle python -m benchmarks.gpu.kernel_check --profile

It also repeats the kernel to the bit, and starts it from a pack through cuda-core, without Triton. A dry run takes a
few small shapes in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.kernel_cases import Case, Sizes
from benchmarks.gpu.place import dry, on_gpu, set_up
from benchmarks.gpu.project import build_pack, loaded_middle
from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import relative, wait

TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""By the norm: what rounding the result to its own type costs, as in tests/kernels/test_middle.py."""
GRID = tuple(
    itertools.starmap(
        Sizes,
        (
            (25, 4, 1, 14, 14, 192),
            (1, 4, 1, 64, 64, 192),
            (9, 9, 1, 14, 14, 320),
            (1, 9, 1, 32, 32, 320),
            (4, 26, 1, 14, 14, 320),
            (1, 26, 1, 16, 16, 320),
            (1, 9, 24, 32, 32, 64),
            (2, 3, 5, 7, 9, 64),
            (1, 1, 1, 1, 1, 16),
            (3, 2, 1, 3, 5, 20),
            (1, 2, 2, 33, 17, 512),
        ),
    )
)
DRY_GRID = (Sizes(1, 2, 1, 3, 5, 20), Sizes(1, 2, 2, 3, 4, 64), Sizes(1, 1, 1, 1, 1, 16))
ONE = Sizes(2, 3, 2, 7, 9, 24)


def main() -> None:
    """Check, or run a little for another tool to look at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", action="store_true", help="check one small shape: for compute-sanitizer")
    parser.add_argument("--profile", action="store_true", help="launch each kernel on two shapes: for ncu")
    arguments = parser.parse_args()
    set_up()
    if arguments.profile:
        profile()
        return
    results = Results("sanitizer" if arguments.one else "kernel")
    if arguments.one:
        for dtype, activate in itertools.product((torch.float16, torch.float32), (True, False)):
            results.attempt("one", _name(ONE, dtype, activate), partial(judge, ONE, dtype, activate))
    else:
        check_all(results)
    results.finish()


def check_all(results: Results) -> None:
    """Every shape, type and form; on a GPU also what the interpreter cannot show."""
    for sizes, dtype, activate in cases(DRY_GRID if dry() else GRID):
        results.attempt("check", _name(sizes, dtype, activate), partial(judge, sizes, dtype, activate))
    if on_gpu():
        results.attempt("check", "offsets beyond 2^31", far_offsets)
        results.attempt("check", "repeats to the bit", repeats)
        results.attempt("check", "packed kernel without Triton", packed)


def _name(sizes: Sizes, dtype: torch.dtype, activate: bool) -> str:
    return f"{tuple(sizes)} {str(dtype).removeprefix('torch.')}{'' if activate else ', GELU before'}"


def cases(grid: tuple[Sizes, ...]) -> list[tuple[Sizes, torch.dtype, bool]]:
    """Shapes with types and forms: each width, type and form is a compilation of one or two seconds."""
    forms = ((torch.float16, True), (torch.float16, False), (torch.float32, True))
    found = [(sizes, dtype, activate) for sizes in grid for dtype, activate in forms]
    return found + [(grid[index], torch.bfloat16, True) for index in (0, 2)]


def judge(sizes: Sizes, dtype: torch.dtype, activate: bool) -> dict[str, Any]:
    """The kernel's error by the norm and its largest one, and whether it passes."""
    case = Case.random(sizes, dtype, activate=activate)
    out, expected = case.fused_poisoned(), case.expected()
    error = relative(out, expected)
    worst = float((out.double() - expected).abs().max())
    return {"error": error, "worst": worst, "passed": error <= TOLERANCE[dtype]}


def profile() -> None:
    """One launch of each kernel on each windowed shape."""
    from benchmarks.gpu.early_gelu import launch_after_gelu

    for sizes in DRY_GRID[:1] if dry() else (GRID[0], GRID[2]):
        case = Case.random(sizes, torch.float16)
        case.fused(torch.empty_like(case.hidden))
        launch_after_gelu(case.hidden, *case.others, **case.along, block=None)
    wait()


def repeats() -> dict[str, Any]:
    """Three runs give the same bits."""
    case = Case.random(GRID[2], torch.float16)
    first, *others = (case.fused_poisoned() for _ in range(3))
    return {"passed": all(torch.equal(first, other) for other in others)}


def far_offsets() -> dict[str, Any]:
    """A volume whose two frames lie more than 2^31 elements apart gives what it gives where they are neighbours."""
    height, width, channels = 2, 4, 64
    inner = 2**31 // (height * width * channels) + 5
    case = Case.random(Sizes(1, 2, 1, height, width, channels), torch.float16)
    expected = case.fused_poisoned()
    large = torch.zeros(2 * inner, height, width, channels, device="cuda", dtype=torch.float16)
    out = torch.full_like(large, float("nan"))
    large[inner - 1], large[2 * inner - 1] = case.hidden[0], case.hidden[1]
    Case(large, case.bias, case.others, {**case.along, "inner": inner}).fused(out)
    same = torch.equal(out[inner - 1], expected[0]) and torch.equal(out[2 * inner - 1], expected[1])
    return {"elements": large.numel(), "passed": same and not bool(out[:1000].isnan().any())}


def packed() -> dict[str, Any]:
    """A kernel built ahead of time, loaded by cuda-core and started on a stream of its own gives the same bits."""
    from cuda.core import Device

    sizes = GRID[0]
    case = Case.random(sizes, torch.float16)
    expected, out = case.fused_poisoned(), torch.full_like(case.hidden, float("nan"))
    torch.cuda.synchronize()
    names = ("bias", "taps", "taps_bias", "norm_weight", "norm_bias")
    weights = (case.bias, *case.others)
    addresses = {name: w.data_ptr() for name, w in zip(names, weights, strict=True) if w is not None}
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        registers = build_pack(Path(folder) / "pack", 10 * major + minor, sizes.channels)
        kernel = loaded_middle(Path(folder) / "pack", sizes.channels)
    device = Device(0)
    device.set_current()
    stream = device.create_stream()
    kernel(
        stream,
        hidden=case.hidden.data_ptr(),
        out=out.data_ptr(),
        rows=len(case.hidden),
        frames=sizes.frames,
        inner=sizes.inner,
        height=sizes.height,
        width=sizes.width,
        **addresses,
    )
    stream.sync()
    return {"passed": torch.equal(out, expected), "registers": registers}


if __name__ == "__main__":
    main()
