"""Kernels built ahead of time for GPUs that are not here, and the packs that carry them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masksam_kernels.build import ARCHITECTURES, CHANNELS, PTX_VERSIONS, Variant, compile_variant, variants
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import INDEX, PackedKernel, read_pack, write_pack
from tests.kernels.command import masksam_kernels

PACKAGE = Path(__file__).parents[2] / "kernels" / "masksam_kernels"


def test_every_architecture_is_built_for_a_driver_that_it_can_have(pack: Path) -> None:
    kernels = read_pack(pack).kernels
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    assert set(ARCHITECTURES) >= {80, 86, 87, 89, 90, 120}
    for kernel in kernels:
        text = (pack / kernel.ptx).read_text()
        assert f".version {kernel.ptx_version}\n" in text
        assert f".target sm_{kernel.architecture}" in text
        assert f".visible .entry {kernel.symbol}(" in text
        assert (pack / kernel.cubin).read_bytes().startswith(b"\x7fELF")
    # JetPack 6 on Orin reads PTX 8.5 and nothing newer.
    assert {kernel.ptx_version for kernel in kernels if kernel.architecture == 87} == {"8.5"}


def test_no_kernel_spills_or_takes_more_than_its_budget(pack: Path) -> None:
    budget = json.loads((PACKAGE / "budget.json").read_text())
    for kernel in read_pack(pack).kernels:
        assert kernel.stack_bytes == 0, kernel.name
        registers, shared, _ = budget[kernel.name]
        assert kernel.registers <= registers, kernel.name
        assert kernel.shared_bytes <= shared, kernel.name


def test_the_budget_covers_every_kernel_and_allows_no_spill() -> None:
    budget = json.loads((PACKAGE / "budget.json").read_text())
    assert set(budget) == {variant.name for variant in variants(ARCHITECTURES, CHANNELS)}
    assert {spilled for _, _, spilled in budget.values()} == {0}


def test_one_source_gives_one_pack_without_paths_of_this_machine(pack: Path, tmp_path: Path) -> None:
    done = masksam_kernels("build", "-o", tmp_path / "again", "--arch", "sm_87", "--channels", "64", "--dtype", "fp16")
    assert done.returncode == 0, done.stderr
    for kernel in read_pack(tmp_path / "again").kernels:
        assert kernel in read_pack(pack).kernels
        code = (tmp_path / "again" / kernel.cubin).read_bytes() + (tmp_path / "again" / kernel.ptx).read_bytes()
        assert str(PACKAGE.parent).encode() not in code
        assert b".py" not in code


def test_show_lists_a_pack_that_holds_its_hashes(pack: Path) -> None:
    done = masksam_kernels("show", pack)
    assert done.returncode == 0
    assert f"{4 * len(ARCHITECTURES)} kernels" in done.stdout
    assert "hashes hold" in done.stdout
    assert "middle_sm87_c320_fp16" in done.stdout
    assert json.loads(masksam_kernels("show", pack, "--json").stdout)["schema"] == 2


def test_a_device_finds_its_kernel_or_reads_how_to_build_it(pack: Path) -> None:
    content = read_pack(pack)
    kernel = content.find(87, 320, "fp16")
    assert kernel.programs(rows=18, frames=9, height=14, width=14) == 2 * -(-196 // kernel.pixels)
    assert content.code(kernel).startswith(b"\x7fELF")
    with pytest.raises(KernelError, match=r"it was built for sm_110, .*--arch sm_100 --channels 320 --dtype fp32"):
        content.find(100, 320, "fp32")


def flip(pack: Path) -> None:
    path = next(pack.glob("*.cubin"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(pack: Path) -> None:
        index = json.loads((pack / INDEX).read_text())
        change(index)
        (pack / INDEX).write_text(json.dumps(index))

    return apply


def first(**changes: object) -> Callable[[Path], None]:
    """Other values in the first kernel's entry."""
    return edit(lambda index: index["kernels"][0].update(changes))


def link_out(pack: Path) -> None:
    path = next(pack.glob("*.ptx"))
    path.rename(pack.parent / "outside.ptx")
    path.symlink_to(pack.parent / "outside.ptx")


def pipe(pack: Path) -> None:
    path = next(pack.glob("*.cubin"))
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "is not the file that the pack was made with"),
        (link_out, "cannot be read as a plain file"),
        (pipe, "is not a plain file"),
        (lambda pack: next(pack.glob("*.cubin")).unlink(), "cannot be read as a plain file: No such file"),
        (lambda pack: (pack / INDEX).unlink(), "is no kernel pack: it has no pack.json"),
        (lambda pack: (pack / INDEX).write_text("[" * 100_000), "is not a kernel pack's index"),
        (lambda pack: (pack / INDEX).write_text("[]"), "is not a kernel pack's index"),
        (lambda pack: (pack / INDEX).write_bytes(b"\xff\xfe"), "is not a kernel pack's index"),
        (edit(lambda index: index.update(schema=1)), "has schema 1, this version reads 2"),
        (edit(lambda index: index.update(kernels=7)), "is not a kernel pack's index"),
        (edit(lambda index: index.update(compiler="\x1b[2J")), "compiler .* has characters"),
        (edit(lambda index: index["arguments"].reverse()), "take other arguments"),
        (edit(lambda index: index["kernels"].append(index["kernels"][0])), "two kernels have one name"),
        (edit(lambda index: index["kernels"][0].pop("symbol")), "symbol.* missing or unknown"),
        (first(cubin="../../etc/passwd"), "cubin .* has characters"),
        (first(cubin="/etc/passwd"), "cubin .* has characters"),
        (first(cubin=".."), "cubin .* has characters"),
        (first(cubin="a\0b"), "cubin .* has characters"),
        (first(cubin="\ud800"), "cubin .* has characters"),
        (first(cubin="x" * 300), "cubin .* has characters"),
        (first(name="\x1b[2J"), "name .* has characters"),
        (first(pixels="8"), "pixels must be int"),
        (first(pixels=0), "pixels must be 1 to 1024, found 0"),
        (first(threads=4096), "threads must be 32 to 1024"),
        (first(operation="other"), "operation 'other'"),
        (first(dtype="fp8"), "'fp8' is not known"),
    ],
)
def test_a_damaged_pack_is_refused(pack: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    content = read_pack(pack)
    few = [(kernel, content.code(kernel), (pack / kernel.ptx).read_text()) for kernel in content.kernels[:2]]
    copy = tmp_path / "copy.kernels"
    write_pack(copy, few, compiler=content.compiler)
    damage(copy)
    with pytest.raises(KernelError, match=message):
        read_pack(copy)


def test_a_file_changed_after_the_pack_was_read_is_not_loaded(pack: Path, tmp_path: Path) -> None:
    content = read_pack(pack)
    kernel = content.kernels[0]
    copy = tmp_path / "copy.kernels"
    entry = (kernel, content.code(kernel), (pack / kernel.ptx).read_text())
    mine = write_pack(copy, [entry], compiler="x")
    flip(copy)
    with pytest.raises(KernelError, match="is not the file"):
        mine.code(kernel)


def test_a_folder_that_is_no_pack_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(KernelError, match=r"exists|is no kernel pack"):
            write_pack(tmp_path / "mine", [], compiler="x", force=force)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_pack_is_replaced_whole_and_only_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "all.kernels"
    write_pack(target, [], compiler="first")
    with pytest.raises(KernelError, match="--force to replace"):
        write_pack(target, [], compiler="second")
    assert write_pack(target, [], compiler="second", force=True).compiler == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["all.kernels"]
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(KernelError, match=r"holds 'thesis.txt', which is not of the pack"):
        write_pack(target, [], compiler="third", force=True)
    (target / "thesis.txt").unlink()
    (tmp_path / "link").symlink_to(target)
    monkeypatch.chdir(target)
    for place in (Path(), tmp_path, tmp_path / "link"):
        with pytest.raises(KernelError):
            write_pack(place, [], compiler="third", force=True)
    assert read_pack(target).compiler == "second"


def test_a_pack_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "all.kernels"
    write_pack(target, [], compiler="first")

    def breaks() -> Iterator[tuple[PackedKernel, bytes, str]]:
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(KernelError, match="cannot be written: No space left"):
        write_pack(target, breaks(), compiler="second", force=True)
    assert read_pack(target).compiler == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["all.kernels"]


def test_the_budget_command_measures_and_refuses_what_has_none() -> None:
    done = masksam_kernels("budget", "--arch", "sm_120", "--channels", "192")
    assert (done.returncode, done.stdout) == (0, "4 of 4 kernels within budget\n"), done.stderr
    done = masksam_kernels("budget", "--channels", "128")
    assert done.returncode == 2
    assert "has no budget; --write gives it one" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "-o", "p", "--arch", "sm_75"), "no kernels are built for sm_75, only for sm_80"),
        (("build", "-o", "p", "--arch", "ampere"), "'ampere' is no architecture such as sm_87"),
        (("build", "-o", "p", "--channels", "513"), "513 is not in the range"),
        (("show", "nothing"), "is no kernel pack"),
        (("build", "-o", "/proc/p", "--arch", "sm_87", "--channels", "64", "--dtype", "fp16"), "cannot be written"),
        (("build", "-o", "/", "--force"), "holds the current folder"),
    ],
)
def test_a_careless_command_is_answered_in_words(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = masksam_kernels(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled on this machine, not interpreted")
def test_nothing_is_built_while_triton_interprets() -> None:
    with pytest.raises(KernelError, match="unset TRITON_INTERPRET"):
        compile_variant(Variant(87, 64, "fp16"))


def test_names_tell_variants_apart() -> None:
    every = list(variants(tuple(PTX_VERSIONS), CHANNELS, ("fp16", "bf16", "fp32")))
    assert len({variant.name for variant in every}) == len(every)
    assert replace(every[0], activate=False).name != every[0].name
