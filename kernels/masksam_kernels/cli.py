"""`masksam-kernels`: build a kernel pack on any machine, look into one, hold the kernels to their budget."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from masksam_kernels.errors import KernelError

if TYPE_CHECKING:
    from masksam_kernels.build import Compiled, Dtype

BUDGET = Path(__file__).parent / "budget.json"
NEEDS = "pip install 'masksam-deploy[kernels]'"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Fused kernels for MaskSAM's depth-convolution adapters, built ahead of time."""


def main() -> None:
    """Run the command line; a refusal is one line and exit code 2."""
    try:
        cli()
    except KernelError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def need_triton() -> str:
    """Triton's version.

    Raises:
        KernelError: it is not installed.
    """
    try:
        import triton
    except ImportError:
        raise KernelError(f"building kernels needs Triton: {NEEDS}") from None
    return str(triton.__version__)


def architectures(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """`sm_87` or `87` -> 87."""
    numbers = [value.lower().removeprefix("sm_").removeprefix("sm") for value in values]
    wrong = [value for value, number in zip(values, numbers, strict=True) if not number.isdecimal()]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is no architecture such as sm_87")
    return tuple(map(int, numbers))


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the new pack.")
@click.option("--arch", multiple=True, callback=architectures, help="Such as sm_87; repeatable. Default: all.")
@click.option("--channels", multiple=True, type=click.IntRange(1, 512), help="Adapter widths. Default: the published.")
@click.option("--dtype", multiple=True, type=click.Choice(["fp16", "bf16", "fp32"]), help="Default: fp16 and bf16.")
@click.option("--force", is_flag=True, help="Replace a pack of that name.")
def build(
    output: Path, arch: tuple[int, ...], channels: tuple[int, ...], dtype: tuple[str, ...], *, force: bool
) -> None:
    """Compile kernels for GPUs that this machine need not have."""
    from masksam_kernels.pack import check_target, write_pack

    version = need_triton()
    from masksam_kernels.build import ARCHITECTURES, CHANNELS, compile_variant, packed, variants

    check_target(output, force=force)
    dtypes = cast("tuple[Dtype, ...]", dtype) or ("fp16", "bf16")
    chosen = list(dict.fromkeys(variants(arch or ARCHITECTURES, channels or CHANNELS, dtypes)))
    built: list[Compiled] = []
    with click.progressbar(
        chosen, label="building", file=sys.stderr, item_show_func=lambda v: v and v.name
    ) as progress:
        built.extend(compile_variant(variant) for variant in progress)
    pack = write_pack(output, map(packed, built), compiler=f"triton {version}", force=force)
    click.echo(f"wrote {output}: {len(pack.kernels)} kernels, verified")


@cli.command()
@click.argument("pack", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The index as it is stored.")
def show(pack: Path, *, as_json: bool) -> None:
    """Check a pack's hashes and list its kernels."""
    from masksam_kernels.pack import INDEX, read_pack

    content = read_pack(pack)
    if as_json:
        click.echo((content.folder / INDEX).read_text(encoding="utf-8"), nl=False)
        return
    click.echo(f"{content.folder}: {len(content.kernels)} kernels, built by {content.compiler}, hashes hold")
    for kernel in content.kernels:
        click.echo(
            f"  {kernel.name:<32} {kernel.registers:>3} registers  {kernel.shared_bytes:>5} B shared  "
            f"{kernel.stack_bytes} B spilled  {kernel.pixels:>2} pixels on {kernel.threads} threads"
        )


@cli.command()
@click.option("--arch", multiple=True, callback=architectures, help="Such as sm_87; repeatable. Default: all.")
@click.option("--channels", multiple=True, type=click.IntRange(1, 512), help="Adapter widths. Default: the published.")
@click.option("--write", is_flag=True, help="Make what was found the budget of these kernels.")
def budget(arch: tuple[int, ...], channels: tuple[int, ...], *, write: bool) -> None:
    """Compile the kernels and hold registers, shared memory and spills to the committed budget; exit code 3 if over."""
    need_triton()
    from masksam_kernels.build import ARCHITECTURES, CHANNELS, compile_variant, variants

    chosen = list(dict.fromkeys(variants(arch or ARCHITECTURES, channels or CHANNELS)))
    allowed: dict[str, list[int]] = json.loads(BUDGET.read_text(encoding="utf-8"))
    unknown = [variant.name for variant in chosen if variant.name not in allowed]
    if unknown and not write:
        raise KernelError(f"{unknown[0]} has no budget; --write gives it one")
    found = {}
    for variant in chosen:
        compiled = compile_variant(variant)
        resources = compiled.resources
        found[variant.name] = [resources.registers, compiled.dynamic_shared_bytes, resources.stack_bytes]
    if write:
        lines = ",\n".join(f'  "{name}": {values}' for name, values in {**allowed, **found}.items())
        BUDGET.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
        click.echo(f"wrote {BUDGET}: {len(found)} kernels")
        return
    over = [name for name, values in found.items() if any(f > a for f, a in zip(values, allowed[name], strict=True))]
    for name in over:
        click.echo(f"{name}: found {found[name]}, allowed {allowed[name]} (registers, shared bytes, spilled bytes)")
    click.echo(f"{len(found) - len(over)} of {len(found)} kernels within budget")
    if over:
        sys.exit(3)
