"""Packed kernels and the operator on a real GPU; what needs none is tested everywhere."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masksam_kernels.device import LoadedMiddle, check_launch
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import read_pack
from tests.kernels.command import masksam_kernels
from tests.kernels.middles import random_middle
from tests.kernels.test_middle import TOLERANCE, arguments

SHAPES = (
    {"outer": 25, "frames": 4, "height": 14, "width": 14, "channels": 192},
    {"outer": 1, "frames": 9, "height": 32, "width": 32, "channels": 320},
    {"outer": 1, "frames": 3, "inner": 5, "height": 7, "width": 9, "channels": 64},
)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 7}, "7 rows of 4x4 do not divide into 3 frames of 2 rows"),
        ({"frames": 0}, "do not divide"),
        ({"addresses": (16, 8)}, "multiples of 16 above 0, found"),
        ({"addresses": (0, 16)}, "multiples of 16 above 0, found"),
        ({"addresses": (16, 32, 16)}, "out is an input"),
        ({"height": 2**16, "width": 2**16}, "one row may have"),
    ],
)
def test_a_launch_that_would_read_beyond_its_tensors_is_refused(sizes: dict[str, object], message: str) -> None:
    good = {"addresses": (16, 32), "rows": 6, "frames": 3, "inner": 2, "height": 4, "width": 4, "channels": 64}
    check_launch(**good)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=message):
        check_launch(**{**good, **sizes})  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could measure")
def test_the_benchmark_claims_nothing_without_a_gpu(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "depth_adapter.py"
    command = [sys.executable, str(script), "-o", str(tmp_path / "result.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout == "not measured: no NVIDIA GPU on this machine\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_operator_equals_the_reference_on_a_gpu(shape: dict[str, int], dtype: torch.dtype) -> None:
    from masksam_kernels.depth_adapter.op import depth_adapter_middle

    case = random_middle(**shape, dtype=dtype, device="cuda")  # type: ignore[arg-type]
    found, expected = depth_adapter_middle(*arguments(case)), case.expected()
    assert float((found.double() - expected).norm() / expected.norm()) <= TOLERANCE[dtype]


@pytest.mark.gpu
def test_a_cuda_graph_holds_the_operator() -> None:
    from masksam_kernels.depth_adapter.op import depth_adapter_middle

    case = random_middle(**SHAPES[0], dtype=torch.float16, device="cuda")  # type: ignore[arg-type]
    depth_adapter_middle(*arguments(case))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = depth_adapter_middle(*arguments(case))
    other = random_middle(**SHAPES[0], dtype=torch.float16, device="cuda", seed=1)  # type: ignore[arg-type]
    case.hidden.copy_(other.hidden)
    graph.replay()
    expected = replace(case, hidden=other.hidden).expected()
    assert float((out.double() - expected).norm() / expected.norm()) <= TOLERANCE[torch.float16]


@pytest.mark.gpu
def test_a_packed_kernel_runs_through_the_driver(tmp_path: Path) -> None:
    from cuda.core import Device

    major, minor = torch.cuda.get_device_capability()
    done = masksam_kernels("build", "-o", tmp_path / "p", "--arch", f"sm_{major}{minor}", "--dtype", "fp16")
    assert done.returncode == 0, done.stderr
    case = random_middle(**SHAPES[0], dtype=torch.float16, device="cuda")  # type: ignore[arg-type]
    assert case.bias is not None
    out = torch.full_like(case.hidden, float("nan"))
    torch.cuda.synchronize()
    device = Device(0)
    device.set_current()
    stream = device.create_stream()
    rows, height, width, channels = case.hidden.shape
    LoadedMiddle(read_pack(tmp_path / "p"), channels=channels, dtype="fp16")(
        stream,
        hidden=case.hidden.data_ptr(),
        bias=case.bias.data_ptr(),
        taps=case.taps.data_ptr(),
        taps_bias=case.taps_bias.data_ptr(),
        norm_weight=case.norm_weight.data_ptr(),
        norm_bias=case.norm_bias.data_ptr(),
        out=out.data_ptr(),
        rows=rows,
        frames=case.frames,
        inner=case.inner,
        height=height,
        width=width,
    )
    stream.sync()
    expected = case.expected()
    assert float((out.double() - expected).norm() / expected.norm()) <= TOLERANCE[torch.float16]
