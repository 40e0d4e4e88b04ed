"""`masksam-deploy compare`: two bundles, or two ways to run one, on the same scans."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from masksam_deploy.base.text import printable
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.values import FILE, share, size_in_bytes

if TYPE_CHECKING:
    from masksam_deploy.comparison import Comparison
    from masksam_deploy.engines.choose import Backend
    from masksam_deploy.runtimes.base import Device
    from masksam_deploy.runtimes.spec import Precision
    from masksam_deploy.scan_path.windows import Accumulator

_DEVICE = click.Choice(["cpu", "cuda"])
_BACKEND = click.Choice(["onnxruntime", "tensorrt", "rtx"])
_PRECISION = click.Choice(["fp32", "fp16", "bf16", "int8"])
_ACCUMULATOR = click.Choice(["float32", "float16"])


@click.command(short_help="Compare two bundles by their label maps of the same scans.")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.argument("scans", metavar="SCAN...", nargs=-1, required=True, type=FILE)
@click.option("--device-a", type=_DEVICE, default="cpu", show_default=True, help="What A runs on.")
@click.option("--device-b", type=_DEVICE, default="cpu", show_default=True, help="What B runs on.")
@click.option("--backend-a", type=_BACKEND, default="onnxruntime", show_default=True, help="Runtime of A.")
@click.option("--backend-b", type=_BACKEND, default="onnxruntime", show_default=True, help="Runtime of B.")
@click.option("--precision-a", type=_PRECISION, default="fp32", show_default=True, help="Of A; else an engine of it.")
@click.option("--precision-b", type=_PRECISION, default="fp32", show_default=True, help="Of B; else an engine of it.")
@click.option("--accumulator-a", type=_ACCUMULATOR, default="float32", show_default=True, help="How A sums windows.")
@click.option("--accumulator-b", type=_ACCUMULATOR, default="float32", show_default=True, help="How B sums windows.")
@click.option("--tta/--no-tta", default=True, help="Average over mirrored windows where a bundle allows it [on].")
@click.option("--threads", type=click.IntRange(1), help="CPU threads for the network [all cores].")
@click.option("--max-ram", callback=size_in_bytes, help="Refuse scans that need more, e.g. 8G [what is free now].")
@click.option("--csv", type=FILE, help="Write a row per scan and class (.csv).")
@click.option(
    "--min-agreement", type=float, callback=share, help="Exit with 3 if fewer of any scan's voxels agree (0 to 1)."
)
@click.option("--min-dice", type=float, callback=share, help="Exit with 3 if any class's Dice in any scan is below.")
@click.option("--json", "as_json", is_flag=True, help="Print everything for machines instead of tables.")
def compare(
    a: Path,
    b: Path,
    scans: tuple[Path, ...],
    device_a: Device,
    device_b: Device,
    backend_a: Backend,
    backend_b: Backend,
    precision_a: Precision,
    precision_b: Precision,
    accumulator_a: Accumulator,
    accumulator_b: Accumulator,
    tta: bool,
    threads: int | None,
    max_ram: int | None,
    csv: Path | None,
    min_agreement: float | None,
    min_dice: float | None,
    as_json: bool,
) -> None:
    """Segment every SCAN with the bundles A and B and compare the label maps.

    A and B may be the same bundle, run in two ways. A SCAN is what infer takes: a file, or a folder with one DICOM
    series. A class that both sides find empty does not count; one that is empty on one side has a Dice of 0.
    """
    if csv:
        _check_csv(csv, (a, b))

    from masksam_deploy.base.memory import bounded_network
    from masksam_deploy.bundle.directory import Bundle
    from masksam_deploy.comparison import Side, check_agreement, check_dice
    from masksam_deploy.comparison import compare as run
    from masksam_deploy.comparison.files import to_dict

    first = Bundle.load(a)
    second = first if b == a else Bundle.load(b)
    on_cpu = (device_a, device_b) == ("cpu", "cpu") and {backend_a, backend_b} == {"onnxruntime"}
    with bounded_network(max_ram) if on_cpu else nullcontext(), progress_bar("loading") as progress:
        comparison = run(
            Side(first, device_a, backend_a, precision_a, accumulator_a, tta),
            Side(second, device_b, backend_b, precision_b, accumulator_b, tta),
            scans,
            threads=threads,
            max_ram=max_ram,
            progress=progress,
        )
    if csv:
        _write_csv(comparison, csv)
    if as_json:
        click.echo(json.dumps(to_dict(comparison), indent=2, allow_nan=False))
    else:
        _tell(comparison, csv)
    if min_agreement is not None:
        check_agreement(comparison, min_agreement)
    if min_dice is not None:
        check_dice(comparison, min_dice)


def _check_csv(path: Path, bundles: tuple[Path, Path]) -> None:
    """Refuse what cannot or must not be written, before minutes of work. The suffix keeps it apart from scans."""
    from masksam_deploy.base.atomic import check_writable
    from masksam_deploy.base.errors import BundleError, OutputError
    from masksam_deploy.base.paths import resolved
    from masksam_deploy.base.text import shown

    if path.suffix.lower() != ".csv":
        raise OutputError(f"'{shown(path)}': found '{path.suffix}' as its type, expected .csv; rename it")
    if {resolved(bundle, BundleError) for bundle in bundles} & set(resolved(path, OutputError).parents):
        raise OutputError(f"'{shown(path)}' lies inside a bundle, which must stay as it is; write elsewhere")
    check_writable(path)


def _write_csv(comparison: Comparison, path: Path) -> None:
    from masksam_deploy.base.atomic import atomic_path
    from masksam_deploy.comparison.files import write_csv

    with atomic_path(path) as temporary:
        write_csv(comparison, temporary)


def _tell(comparison: Comparison, csv: Path | None) -> None:
    # rich only now: --json does without it.
    from masksam_deploy.comparison.tables import print_tables

    print_tables(comparison, sys.stdout)
    if csv:
        click.echo(f"csv: {printable(csv)}")
