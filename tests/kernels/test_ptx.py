"""What the kernels' PTX takes, with and without the arguments that only Triton's launcher passes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksam_kernels.arguments import ARGUMENTS, SCRATCH, float32_bits
from masksam_kernels.build import resources_of
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import PackedKernel, read_pack
from masksam_kernels.ptx import check_entry, without_scratch

ONE_SCRATCH = ".visible .entry f(\n .param .u64 a,\n .param .u32 b\n)"


def kernels(pack: Path, architecture: int) -> list[PackedKernel]:
    return [kernel for kernel in read_pack(pack).kernels if kernel.architecture == architecture]


def parameters(ptx: str) -> list[str]:
    entry = ptx[ptx.index(".visible .entry") :]
    return [line.split()[1] for line in entry[: entry.index(")")].splitlines() if ".param" in line]


def assembled(ptx: str, architecture: int, folder: Path) -> bytes:
    """What NVIDIA's assembler, which comes with Triton, makes of it."""
    import triton.backends.nvidia as backend

    source, target = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx)
    ptxas = Path(backend.__file__).parent / "bin" / "ptxas"
    command = [str(ptxas), f"-arch=sm_{architecture}", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


def test_the_entry_point_takes_the_arguments_that_the_pack_lists(pack: Path) -> None:
    types = {"pointer": ".u64", "int32": ".u32"}
    content = read_pack(pack)
    for kernel in content.kernels:
        assert parameters(content.ptx(kernel)) == [types[kind] for _, kind in ARGUMENTS]


def test_without_scratch_a_kernel_takes_two_arguments_less_and_is_the_same_code(pack: Path, tmp_path: Path) -> None:
    content = read_pack(pack)
    for kernel in kernels(pack, 87):
        before = content.ptx(kernel)
        after = without_scratch(before, kernel.name)
        assert parameters(after) == parameters(before)[: -len(SCRATCH)]
        assert after[after.index(".reqntid") :] == before[before.index(".reqntid") :]
        cubin = assembled(after, 87, tmp_path)
        found = resources_of(cubin)
        assert (found.registers, found.stack_bytes) == (kernel.registers, kernel.stack_bytes)


@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_every_generation_s_kernels_do_without_scratch(pack: Path, architecture: int) -> None:
    content = read_pack(pack)
    for kernel in kernels(pack, architecture):
        without_scratch(content.ptx(kernel), kernel.name)


@pytest.mark.parametrize("index", [-2, -1])
def test_a_kernel_that_reads_its_scratch_is_not_stripped(pack: Path, index: int) -> None:
    content = read_pack(pack)
    kernel = content.find(87, 64, "fp16")
    number = len(ARGUMENTS) + index
    ptx = content.ptx(kernel).replace("// %bb.0:", f"ld.param.b64 %rd1, [{kernel.symbol}_param_{number}+4];", 1)
    with pytest.raises(KernelError, match=rf"reads Triton's scratch argument \w+_param_{number}, expected it"):
        without_scratch(ptx, kernel.name)


@pytest.mark.parametrize("check", [check_entry, without_scratch])
@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        (ONE_SCRATCH, r"was compiled to take \['.u64', '.u32'\], expected"),
        (".version 8.5", "has 0 entry points, expected one"),
        (ONE_SCRATCH * 2, "has 2 entry points, expected one"),
    ],
)
def test_code_that_takes_other_arguments_is_refused(check: object, ptx: str, message: str) -> None:
    assert callable(check)
    with pytest.raises(KernelError, match=message):
        check(ptx, "f")


@given(value=st.floats(0, 1e30))
def test_epsilon_travels_as_the_bits_of_a_float32(value: float) -> None:
    assert np.int32(float32_bits(value)).view(np.float32) == np.float32(value)
